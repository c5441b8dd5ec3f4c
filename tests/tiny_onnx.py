"""A tiny decoder in the exported folder's convention, and a task that it does: count good and bad words.

Every token leaves its embedding in the cache; a position's logits are a projection of the sum of what it sees.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from sieve_edge.config import Limits, Target, Workload
from sieve_edge.device.ort import OrtTextModel
from sieve_edge.device.reference import REFERENCE, write_reference
from sieve_edge.task.examples import Example
from sieve_edge.task_config import Task

GOOD, BAD, OTHER = ("fine", "warm", "witty", "great"), ("dull", "cold", "silly", "awful"), ("film", "plot", "cast")
WORDS = ("unknown", "Review", ":", "Mood", "positive", "negative", *GOOD, *BAD, *OTHER)
LABELS = {"neg": " negative", "pos": " positive"}
WIDTH, POSITIONS = 8, 64
PROMPT = "Review: {{ text }} Mood:"


def make_task():
    split = {"calibration": 20, "selection": 20, "test": 60, "transfer": 40}
    source = {"path": "file:none.csv"}
    return Task(
        name="mood", description="d", source=source, transfer=source, prompt=PROMPT, labels=LABELS, splits=split
    )


def make_target(**limits):
    return Target(
        name="tiny",
        description="d",
        format="onnx",
        runtime="onnxruntime",
        threads=1,
        rank_multiple=1,
        rank_multiple_reason="r",
        model="m",
        connection="local",
        task="mood",
        workload=Workload(decode_tokens=3, repeats=5),
        limits=Limits(**limits),
    )


def make_examples(count, seed):
    rng = np.random.default_rng(seed)
    examples = []
    for index in range(count):
        label = index % 2
        mine, other = (GOOD, BAD) if label else (BAD, GOOD)
        words = [str(rng.choice(mine if rng.random() < 0.75 else other)) for _ in range(rng.integers(3, 8))]
        words += [str(word) for word in rng.choice(OTHER, rng.integers(0, 4))]
        text = " ".join(words)
        examples.append(Example(text, PROMPT.replace("{{ text }}", text), label))
    return examples


def write_folder(folder: Path, noise=0.0, bias=0.0, work=0, prior=(0.0, 0.0)):
    """Write a folder; ``noise`` makes it worse, ``bias`` makes it prefer "positive", ``work`` makes it slower."""
    folder.mkdir(parents=True)
    onnx.save(build_graph(noise, bias, work), folder / "model.onnx")
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="unknown"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "metric": "balanced_accuracy",
        "labels": [list(item) for item in LABELS.items()],
        "ends": [],
        "positions": None,
        "chat": None,
        "prior": {"dense": [0.0, 0.0], "pruned": list(prior)},
        "kept_fraction": {"linears": 0.5, "model": 0.7},
        "selection": {"dense": 0.9, "pruned": 0.88},
    }
    (folder / "sieve_edge.json").write_text(json.dumps(facts))
    write_reference(OrtTextModel(folder, 1), [[1, 2, 6, 3, 2], [1, 2, 7, 8, 10, 3, 2]], folder / REFERENCE)
    return folder


def build_graph(noise=0.0, bias=0.0, work=0):
    rng = np.random.default_rng(0)
    embedding = np.zeros((len(WORDS), WIDTH), dtype=np.float32)
    embedding[:, 1:] = rng.normal(0, 0.1, (len(WORDS), WIDTH - 1))
    for words, sign in ((GOOD, 1.0), (BAD, -1.0)):
        for word in words:
            embedding[WORDS.index(word), 0] = sign + noise * rng.normal()
    head = rng.normal(0, 0.05, (WIDTH, len(WORDS))).astype(np.float32)
    head[0, WORDS.index("positive")], head[0, WORDS.index("negative")] = 1.0, -1.0
    head_bias = np.zeros(len(WORDS), dtype=np.float32)
    head_bias[WORDS.index("positive")] = bias
    constants = {
        "embedding": embedding,
        "positions": rng.normal(0, 0.05, (POSITIONS, WIDTH)).astype(np.float32),
        "head": head,
        "head_bias": head_bias,
        "axis1": np.array([1]),
        "axis2": np.array([2]),
        "axes13": np.array([1, 3]),
        "cumsum_axis": np.array(2),
        "end": np.array([2**62]),
        "logits_to_keep": np.array([0]),
    }
    nodes = [
        ("Gather", ["embedding", "input_ids"], "words"),
        ("Gather", ["positions", "position_ids"], "places"),
        ("Add", ["words", "places"], "hidden"),
        ("Unsqueeze", ["hidden", "axis1"], "key"),
        ("Add", ["key", "key"], "value"),
        ("Concat", ["past_key_values.0.key", "key"], "present.0.key", {"axis": 2}),
        ("Concat", ["past_key_values.0.value", "value"], "present.0.value", {"axis": 2}),
        ("Add", ["present.0.key", "present.0.value"], "seen"),
        ("Cast", ["attention_mask"], "mask", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["mask", "axes13"], "mask_4d"),
        ("Mul", ["seen", "mask_4d"], "masked"),
        ("CumSum", ["masked", "cumsum_axis"], "sums"),
        ("Shape", ["past_key_values.0.key"], "past_length", {"start": 2, "end": 3}),
        ("Slice", ["sums", "past_length", "end", "axis2"], "new_sums"),
        ("Squeeze", ["new_sums", "axis1"], "context_all"),
        ("Neg", ["logits_to_keep"], "first_kept"),
        ("Slice", ["context_all", "first_kept", "end", "axis1"], "context"),
        ("MatMul", ["context", "head"], "projected"),
        ("Add", ["projected", "head_bias"], "logits" if not work else "busy0"),
    ]
    if work:
        wide = 256
        constants |= {
            "widen": rng.normal(0, 1 / WIDTH, (WIDTH, wide)).astype(np.float32),
            "busy": rng.normal(0, 1 / 16, (wide, wide)).astype(np.float32),
            "narrow": np.full((wide, len(WORDS)), 1e-6, dtype=np.float32),
        }
        # All positions, so that a prompt costs more than a step.
        nodes += [("MatMul", ["context_all", "widen"], "wide0")]
        for step in range(work):
            nodes += [("MatMul", [f"wide{step}", "busy"], f"raw{step}"), ("Tanh", [f"raw{step}"], f"wide{step + 1}")]
        nodes += [
            ("MatMul", [f"wide{work}", "narrow"], "extra_all"),
            ("Slice", ["extra_all", "first_kept", "end", "axis1"], "extra"),
            ("Add", ["busy0", "extra"], "logits"),
        ]
    return _model(nodes, constants)


def _model(nodes, constants):
    ints = [("input_ids", ["b", "t"]), ("attention_mask", ["b", "n"]), ("position_ids", ["b", "t"])]
    kinds = ("key", "value")
    graph = helper.make_graph(
        [helper.make_node(op, ins, [out], **(rest[0] if rest else {})) for op, ins, out, *rest in nodes],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in ints]
        + [_cache(f"past_key_values.0.{kind}", "p") for kind in kinds]
        + [helper.make_tensor_value_info("logits_to_keep", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "k", len(WORDS)])]
        + [_cache(f"present.0.{kind}", "n") for kind in kinds],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _cache(name, length):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 1, length, WIDTH])
