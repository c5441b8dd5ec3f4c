"""Loads an exported folder with optimum and with onnxruntime-genai, each in an environment of its own.

Usage: check_interop.py EXPORTED_FOLDER ENVIRONMENTS_FOLDER [PROMPT]

Compares 16 greedy tokens with plain ONNX Runtime's. Without sieve_edge: what is tested is that others load the folder.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path

NEW_TOKENS = 16
PROMPT = "The capital of France is"

# optimum-onnx takes an older transformers than the project; genai takes plain onnxruntime. Hence one environment each.
ENVIRONMENTS = {
    "optimum": ["optimum-onnx==0.1.0", "transformers==4.57.6", "onnxruntime==1.31.1", "torch==2.13.0"],
    "genai": ["onnxruntime-genai==0.18.0", "onnxruntime==1.31.1", "tokenizers==0.23.3"],
}

PLAIN = """
import json, sys
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, count, prompt = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
shapes = {item.name: item.shape for item in session.get_inputs() if item.name.startswith("past")}
ids = tokenizer.encode(prompt).ids
past = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}
new, seen, answer = ids, 0, []
for _ in range(count):
    feeds = {
        "input_ids": np.array([new], np.int64),
        "attention_mask": np.ones((1, seen + len(new)), np.int64),
        "position_ids": np.arange(seen, seen + len(new), dtype=np.int64)[None],
    }
    names = [item.name for item in session.get_outputs()]
    values = dict(zip(names, session.run(names, feeds | past)))
    seen += len(new)
    past = {name: values[name.replace("past_key_values", "present")] for name in past}
    new = [int(values["logits"][0, -1].argmax())]
    answer += new
print(json.dumps({"prompt": ids, "tokens": answer, "text": tokenizer.decode(answer)}))
"""

OPTIMUM = """
import json, sys
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

folder, count, prompt = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = ORTModelForCausalLM.from_pretrained(folder)
inputs = tokenizer(prompt, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False)
start = inputs["input_ids"].shape[1]
answer = output[0, start:].tolist()
print(json.dumps({"prompt": inputs["input_ids"][0].tolist(), "tokens": answer, "text": tokenizer.decode(answer)}))
"""

GENAI = """
import json, sys
import onnxruntime_genai

folder, count, prompt = sys.argv[1], int(sys.argv[2]), sys.argv[3]
model = onnxruntime_genai.Model(folder)
tokenizer = onnxruntime_genai.Tokenizer(model)
ids = [int(token) for token in tokenizer.encode(prompt)]
params = onnxruntime_genai.GeneratorParams(model)
params.set_search_options(do_sample=False, max_length=len(ids) + count, min_length=len(ids) + count)
generator = onnxruntime_genai.Generator(model, params)
generator.append_tokens(ids)
while not generator.is_done():
    generator.generate_next_token()
answer = [int(token) for token in generator.get_sequence(0)][len(ids):]
print(json.dumps({"prompt": ids, "tokens": answer, "text": tokenizer.decode(answer)}))
"""


def make_environment(folder: Path, packages: list[str]) -> Path:
    """Create an environment unless it is there already with these packages.

    Args:
        folder: Folder of the environment.
        packages: Requirements with exact versions.

    Returns:
        Its Python.
    """
    python = folder / "bin" / "python"
    done = folder / "installed.json"
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == packages:
        return python
    venv.create(folder, with_pip=True, clear=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    done.write_text(json.dumps(packages), encoding="utf-8")
    return python


def answer_of(python: Path, script: str, folder: Path, prompt: str) -> dict[str, object]:
    """Run one of the scripts above.

    Args:
        python: Interpreter of its environment.
        script: Source text.
        folder: Exported folder.
        prompt: Text to continue.

    Returns:
        What it printed last: prompt ids, tokens and text.
    """
    command = [python, "-c", script, folder, str(NEW_TOKENS), prompt]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    answer: dict[str, object] = json.loads(output.strip().splitlines()[-1])
    return answer


def main(arguments: list[str]) -> int:
    """Compare and print one JSON line.

    Args:
        arguments: Exported folder, folder of the environments, and perhaps a prompt.

    Returns:
        Exit code: 0 if all agree.
    """
    if len(arguments) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    folder, environments = Path(arguments[0]).resolve(), Path(arguments[1]).resolve()
    prompt = arguments[2] if len(arguments) == 3 else PROMPT
    pythons = {name: make_environment(environments / name, packages) for name, packages in ENVIRONMENTS.items()}
    answers = {
        "onnxruntime": answer_of(pythons["genai"], PLAIN, folder, prompt),
        "optimum": answer_of(pythons["optimum"], OPTIMUM, folder, prompt),
        "onnxruntime-genai": answer_of(pythons["genai"], GENAI, folder, prompt),
    }
    passed = all(answer == answers["onnxruntime"] for answer in answers.values())
    for name, answer in answers.items():
        print(f"{name}: {answer['text']!r}", file=sys.stderr)
    print(json.dumps({"passed": passed, "answers": answers}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
