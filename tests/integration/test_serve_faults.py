"""The server where things go wrong: clients that leave, models that fail, taken ports, requests that others send."""

import json
import socket
import time
from contextlib import contextmanager

import numpy as np
import openai
import pytest
from click.testing import CliRunner
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel

from sieve_edge.artifacts import Manifest, write_manifest
from sieve_edge.cli import cli
from sieve_edge.cli.serve import open_served
from sieve_edge.device.api import ChatCompletion
from sieve_edge.device.completions import LabelPrior
from sieve_edge.device.replies import Served
from sieve_edge.device.serve import open_port
from sieve_edge.errors import SieveError
from sieve_edge.task.generate import Ending, answer_greedily
from tests.servers import free_port, running_app
from tests.tiny_onnx import make_target, write_folder

PIECES = ("a", "b", "Ã", "©", "<|im_end|>", "Ġno", "!")
"""``Ã`` and ``©`` are the two bytes of é."""

FREE = LabelPrior((), {})


class Scripted:
    """A model that says one token after the other, and notices when two ask at once."""

    def __init__(self, script=(0,), pause_s=0.0, fails_at=None):
        self.script, self.pause_s, self.fails_at = script, pause_s, fails_at
        self.calls, self.together, self.inside = 0, 0, 0

    def forward(self, input_ids, attention_mask, position_ids, past, logits_to_keep):
        self.inside += 1
        self.together = max(self.together, self.inside)
        time.sleep(self.pause_s)
        said = past[0] if past else 0
        self.calls += 1
        self.inside -= 1
        if said == self.fails_at:
            raise ZeroDivisionError("a bug")
        logits = np.zeros((len(input_ids), 1, len(PIECES)), dtype=np.float32)
        # So far above the others that sampling finds no other either.
        logits[:, 0, self.script[said % len(self.script)]] = 60.0
        return logits, [said + 1]


def make_served(model, ends=()):
    tokenizer = Tokenizer(WordLevel({piece: index for index, piece in enumerate(PIECES)}, unk_token="!"))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_end|>")])
    return Served("scripted", model, tokenizer, ends, FREE, None, 4096)


@contextmanager
def running(served):
    with running_app(served, "critical") as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def ask(client, **changes):
    options = {"model": "scripted", "prompt": "a", "max_tokens": 4, "temperature": 0, "timeout": 20, **changes}
    return client.completions.create(**options)


def test_a_client_that_leaves_stops_its_answer_and_never_meets_the_next():
    model = Scripted(pause_s=0.05)
    with running(make_served(model)) as client:
        for _ in range(3):
            stream = ask(client, max_tokens=2000, stream=True)
            next(iter(stream))
            stream.close()
        assert ask(client).choices[0].text == "aaaa"
        assert model.together == 1, "two requests were computed at once"
        assert model.calls < 200, "answers that nobody reads were written to their end"
        calls = model.calls
        time.sleep(0.3)
        assert model.calls == calls


def test_a_client_that_gives_up_waiting_stops_its_answer():
    model = Scripted(pause_s=0.02)
    with running(make_served(model)) as client:
        with pytest.raises(openai.APITimeoutError):
            ask(client, max_tokens=2000, timeout=0.3)
        assert ask(client).choices[0].text == "aaaa"
        assert model.calls < 200, "the answer that nobody waits for was written to its end"


def test_answers_without_text_are_stopped_too():
    # A stop string of this length holds back all that is written.
    model = Scripted(pause_s=0.01)
    with running(make_served(model)) as client:
        ask(client, max_tokens=3000, stream=True, stop=["a" * 2999 + "b"]).close()
        time.sleep(0.3)
        calls = model.calls
        time.sleep(0.3)
        assert model.calls == calls


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_bug_ends_a_stream_instead_of_leaving_its_reader_waiting(fails_at):
    with running(make_served(Scripted(fails_at=fails_at))) as client:
        with pytest.raises((openai.InternalServerError, openai.APIConnectionError, Exception)) as caught:
            list(ask(client, max_tokens=9, stream=True, timeout=5))
        assert not isinstance(caught.value, openai.APITimeoutError)
        assert "timed out" not in str(caught.value)


def test_an_error_that_can_be_told_is_told_in_the_stream():
    model = Scripted()
    forward = model.forward

    def failing(*arguments):
        if model.calls == 2:
            raise SieveError("the cache is full")
        return forward(*arguments)

    model.forward = failing
    with running(make_served(model)) as client, pytest.raises(openai.APIError, match="the cache is full"):
        list(ask(client, max_tokens=9, stream=True))


@pytest.mark.parametrize(
    ("script", "max_tokens", "stop"),
    [
        ((0, 4, 1, 5), 4, ["<|im_end|>"]),
        ((0, 2, 3, 1), 4, ["b"]),
        ((0, 2, 3, 1), 2, []),
        ((0, 4, 1), 3, []),
        ((5, 6), 2, ["o!"]),
    ],
)
def test_a_served_answer_reads_as_validation_reads_it(script, max_tokens, stop):
    model = Scripted(script)
    served = make_served(model, ends=(6,) if not stop else ())
    ending = Ending(served.tokenizer, served.ends, tuple(stop))
    (ids,) = answer_greedily(model, [[0]], max_tokens, ending.reached, 64)
    with running(served) as client:
        for stream in (False, True):
            reply = ask(client, max_tokens=max_tokens, stop=stop, stream=stream)
            text = "".join(each.choices[0].text for each in reply) if stream else reply.choices[0].text
            assert text.strip() == ending.text(ids)


def test_messages_are_read_as_existing_clients_send_them():
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "a film?"}]
    sent = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": []}],
        **dict.fromkeys(("temperature", "top_p", "n", "stream", "logprobs", "top_logprobs", "max_tokens", "stop")),
    }
    asked = ChatCompletion.model_validate_json(json.dumps(sent))
    assert [message.content for message in asked.messages] == ["What is\na film?", ""]
    assert (asked.temperature, asked.top_p, asked.stream, asked.logprobs) == (1.0, 1.0, False, False)
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(ValueError, match="text"):
        ChatCompletion(messages=[{"role": "user", "content": picture}])


def write_run(folder, labels, prior):
    """Write what serve reads of a finished build."""
    pruned = write_folder(folder / "export" / "pruned")
    facts = json.loads((pruned / "sieve_edge.json").read_text(encoding="utf-8"))
    facts |= {"labels": [[str(index), label] for index, label in enumerate(labels)], "prior": {"pruned": prior}}
    (pruned / "sieve_edge.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "validate").mkdir()
    manifest = Manifest("validate", "k", {}, {"target": make_target().model_dump()}, 0, {}, 0.0, {})
    write_manifest(folder / "validate", manifest)
    return folder


def test_a_prior_that_cannot_be_applied_is_named(tmp_path, capsys):
    labels = [" positive fine", " positive warm", " negative"]
    run = write_run(tmp_path / "run", labels, [0.1, 0.2, 0.3])
    assert open_served(run, "pruned", 1, 64, prior=True).prior == FREE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: labels ")
    assert "the prior cannot be applied here" in line
    assert "[0.1, 0.2, 0.3]" in line
    open_served(run, "pruned", 1, 64, prior=False)
    open_served(write_run(tmp_path / "alike", labels, [0.1, 0.1, 0.3]), "pruned", 1, 64, prior=True)
    assert capsys.readouterr().err == ""


def test_a_null_is_no_bad_request():
    with running(make_served(Scripted())) as client:
        assert ask(client, temperature=None, max_tokens=None, seed=None, stop=None).choices[0].text == "a" * 16


def test_a_taken_port_is_one_line_before_anything_is_said_or_loaded(tmp_path):
    with open_port("127.0.0.1", 0) as door:
        port = door.getsockname()[1]
        done = CliRunner().invoke(cli, ["serve", str(tmp_path), "--port", str(port)])
    assert done.exit_code == 3
    assert done.stderr.splitlines() == [
        f"error: 127.0.0.1:{port}: cannot listen there (Address already in use); choose others by --port and --host"
    ]
    with pytest.raises(SieveError, match=r"192\.0\.2\.1:\d+: cannot listen there"):
        open_port("192.0.2.1", free_port())
    with open_port("::1", 0) as door:
        assert door.family == socket.AF_INET6
