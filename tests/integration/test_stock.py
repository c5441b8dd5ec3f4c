"""llama.cpp as it is, beside the patched build with the same options: compiled when it is first asked for, minutes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sieve_edge.export.to_gguf import write_gguf
from tests.tiny_gguf import TEXTS, TOKENIZER, factor, make_model, narrow

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make runtime")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
RUN = """
import sys, numpy as np
from pathlib import Path
from sieve_edge.device.llama import LlamaTextModel, runtime
model = LlamaTextModel(Path(sys.argv[1]), 1, 256, sys.argv[2])
ids = np.asarray([[int(word) for word in sys.argv[4].split(",")]])
logits, _ = model.forward(ids, np.ones_like(ids), np.arange(ids.shape[1])[None], [], 0)
np.save(sys.argv[3], logits)
print(runtime().__version__)
"""


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A folder with the stock package, which PYTHONPATH puts before the patched one."""
    environment = {**os.environ, "PYTHON": sys.executable}
    made = subprocess.run(
        [ROOT / "scripts" / "runtime.sh", "stock"], env=environment, stdout=subprocess.PIPE, check=True
    )
    folder = tmp_path_factory.mktemp("stock")
    wheel = made.stdout.decode().strip()
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, wheel], check=True)
    return folder


def run(file, out, cache="f16", path=None):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path and str(path), str(ROOT)]))}
    ids = ",".join(map(str, TOKENIZER.encode(TEXTS[0])))
    words = [sys.executable, "-c", RUN, file, cache, out, ids]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_dense_files_compute_the_same_with_and_without_the_patch(stock, family, tmp_path):
    write_gguf(make_model(family), TOKENIZER, "dense", tmp_path / "dense.gguf")
    versions = []
    for name, path in (("patched", None), ("stock", stock)):
        for cache in ("f16", "f32"):
            done = run(tmp_path / "dense.gguf", tmp_path / f"{name}-{cache}.npy", cache, path)
            assert done.returncode == 0, done.stderr
        versions.append(done.stdout.split()[-1])
    assert versions == ["0.3.36+factored.1", "0.3.36"]
    for cache in ("f16", "f32"):
        assert np.array_equal(*(np.load(tmp_path / f"{name}-{cache}.npy") for name in ("patched", "stock")))


def test_stock_loads_narrow_layers_and_names_what_factors_need(stock, tmp_path):
    write_gguf(narrow("llama"), TOKENIZER, "narrow", tmp_path / "narrow.gguf")
    done = run(tmp_path / "narrow.gguf", tmp_path / "logits.npy", path=stock)
    assert done.returncode == 0, done.stderr
    write_gguf(factor(make_model("llama"), "llama")[0], TOKENIZER, "pairs", tmp_path / "pairs.gguf")
    done = run(tmp_path / "pairs.gguf", tmp_path / "logits.npy", path=stock)
    assert done.returncode != 0
    said = "pairs.gguf: holds factored matrices, which llama.cpp of llama-cpp-python 0.3.36 does not know; install the "
    assert f"{said}build with docker/llama.cpp/factored-weights.patch: make runtime" in done.stderr
