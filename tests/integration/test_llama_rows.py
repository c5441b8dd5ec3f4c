"""Rows of llama.cpp: more of them than it holds sequences, and who may give them back."""

import threading

import numpy as np
import pytest

from sieve_edge.device.llama import GGUF, LlamaTextModel, runtime
from sieve_edge.export.to_gguf import write_gguf
from sieve_edge.task.generate import answer_greedily
from sieve_edge.task.likelihood import label_log_likelihoods
from tests.tiny_gguf import TEXTS, TOKENIZER, make_model

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make runtime")

PREFIX = (TOKENIZER.encode(TEXTS[0]) * 20)[:20]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / GGUF
    write_gguf(make_model("llama"), TOKENIZER, "tiny", path)
    return path


def test_more_equally_short_tails_than_sequences_are_scored_and_answered(file):
    model = LlamaTextModel(file, 1, 2048, "f32")
    prompts = [[*PREFIX, 5 + row % 40] for row in range(300)]
    scores = label_log_likelihoods(model, prompts, [[7], [8]], 2048)
    assert np.allclose(scores[:40], label_log_likelihoods(model, prompts[:40], [[7], [8]], 2048), atol=1e-4)
    answers = answer_greedily(model, prompts, 2, lambda ids: False, 2048)
    assert answers[:40] == answers[40:80] == answers[240:280]


def test_only_the_thread_that_runs_the_model_gives_sequences_back(file, monkeypatch):
    model, api, callers = LlamaTextModel(file, 1, 64), runtime(), []
    give_back = api.llama_memory_seq_rm
    monkeypatch.setattr(
        api, "llama_memory_seq_rm", lambda *asked: (callers.append(threading.get_ident()), give_back(*asked))
    )
    ids = np.asarray([PREFIX[:3]])
    for _ in range(70):
        pasts = [model.forward(ids, np.ones_like(ids), np.arange(3)[None], [], 1)[1]]
        other = threading.Thread(target=pasts.clear)
        other.start()
        other.join()
    assert set(callers) == {threading.get_ident()}
