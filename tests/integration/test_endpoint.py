"""Scoring servers: forms of answers, refusals, faults, labels of several tokens, and llama-cpp-python's server."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from click.testing import CliRunner

from sieve_edge.cli import cli
from sieve_edge.device.completions import LabelPrior, label_prior
from sieve_edge.device.ort import OrtTextModel
from sieve_edge.device.replies import Served
from sieve_edge.device.runtimes import open_tokenizer
from sieve_edge.errors import SieveError
from sieve_edge.protocols import Chat
from sieve_edge.task.endpoint import Endpoint, evaluate_endpoint
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import Example, load_splits
from sieve_edge.task_config import Task
from tests.servers import await_server, fault_server, free_port, running_app, said
from tests.tiny_onnx import make_examples, make_task, write_folder

EXAMPLES = [Example("t", f"prompt {index}:", index % 2) for index in range(4)]
LONG_LABELS = {"neg": " negative cold plot", "pos": " positive warm"}


def words(tokens, values, tops):
    logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": []}
    choice = {"index": 0, "text": "".join(tokens), "finish_reason": "length", "logprobs": logprobs}
    return {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}


def told(top):
    likeliest = max(top, key=lambda token: top[token] or -1e9)
    return words([likeliest], [top[likeliest]], [top])


def right(body):
    index = int(body["prompt"].split()[1][0])
    return {" positive": -0.1 if index % 2 else -2.0, " negative": -1.0}


def score(reply, task=None, examples=EXAMPLES, **options):
    with fault_server(reply) as (url, asked):
        return evaluate_endpoint(
            Endpoint(url, "m", concurrency=1, **options), task or make_task(), examples, None
        ), asked


def test_completions_in_the_form_of_chats_are_read():
    def reply(_, body):
        top = right(body)
        likeliest = max(top, key=top.get)
        tops = [{"token": token, "logprob": value, "bytes": None} for token, value in top.items()]
        content = [{"token": likeliest, "logprob": top[likeliest], "bytes": None, "top_logprobs": tops}]
        choice = {"index": 0, "text": likeliest, "finish_reason": "length", "logprobs": {"content": content}}
        return 200, {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}

    found, _ = score(reply)
    assert (found["score"], found["outside"], found["top"]) == (1.0, 0, 20)


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_tells_fewer_is_asked_for_fewer(status):
    refusal = {"error": {"message": "logprobs: at most 5"}}
    found, asked = score(lambda _, body: (status, refusal) if body["logprobs"] > 5 else (200, told(right(body))))
    assert (found["score"], found["top"]) == (1.0, 5)
    assert [body["logprobs"] for body, _ in asked] == [20, 10, 5, 5, 5, 5]
    with pytest.raises(SieveError, match=f"status {status}"):
        score(lambda *_: (status, refusal))


@pytest.mark.parametrize("unreached", ["-9999.0", "-Infinity", "null"])
def test_tokens_out_of_reach_are_outside(unreached):
    def reply(_, body):
        text = json.dumps(told({" positive": -0.1}))
        return 200, text.replace('{" positive": -0.1}', f'{{" positive": -0.1, " negative": {unreached}}}').encode()

    found, _ = score(reply)
    assert (found["score"], found["outside"], found["none_inside"]) == (0.5, 4, 0)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (b"{broken", "no usable answer"),
        (b'"words"', "no usable answer"),
        ({"choices": []}, "no usable answer"),
        (words(["a", "b"], [-0.1], [{"a": -0.1}]), "no usable answer"),
        (words(["a"], [-0.1], [{"a": "x"}]), "no usable answer"),
        (words([], [], []) | {"choices": [{"index": 0, "text": "a", "logprobs": None}]}, "tells no log-likelihoods"),
    ],
)
def test_an_answer_that_cannot_be_used_is_one_line(tree, expected):
    with pytest.raises(SieveError, match=expected) as caught:
        score(lambda *_: (200, tree))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("http://127.0.0.1:")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("served") / "pruned", noise=0.6)


@pytest.fixture(scope="module")
def served(folder):
    chat = Chat("{{ messages[0].content }}")
    return Served("tiny", OrtTextModel(folder, 1), open_tokenizer(folder), (), LabelPrior((), {}), chat, 64)


@pytest.fixture(scope="module")
def url(served):
    with running_app(served) as url:
        yield url


def expected_score(task, examples, served, **changes):
    exam = Examiner(task).exam(examples, served.tokenizer, ())
    return exam.grade(exam.take(served.model, 256), changes.get("prior", [])).score


@pytest.mark.parametrize("known", [False, True])
def test_labels_of_several_tokens_score_what_validation_scores(url, served, known):
    task, examples = make_task().model_copy(update={"labels": LONG_LABELS}), make_examples(60, 1)
    tokenizer = served.tokenizer if known else None
    found = evaluate_endpoint(Endpoint(url, tokenizer=tokenizer), task, examples, None)
    expected = expected_score(task, examples, served)
    assert found["score"] == pytest.approx(expected)
    assert found["outside"] == 0
    first = make_task()
    assert expected != pytest.approx(expected_score(first, examples, served)), "the first tokens alone say otherwise"


@pytest.mark.parametrize("known", [False, True])
def test_a_served_prior_reaches_labels_that_begin_alike(served, known):
    task = make_task().model_copy(update={"labels": {"neg": " film cold", "pos": " film warm"}})
    examples, prior = make_examples(60, 1), [4.0, 0.0]
    ids = [served.tokenizer.encode(label).ids for label in task.labels.values()]
    with running_app(replace(served, prior=label_prior(ids, prior))) as url:
        found = evaluate_endpoint(Endpoint(url, tokenizer=served.tokenizer if known else None), task, examples, None)
    expected = expected_score(task, examples, served, prior=prior)
    assert found["score"] == pytest.approx(expected)
    assert expected != pytest.approx(expected_score(task, examples, served)), "the prior changes answers"


@pytest.mark.parametrize("chats", [False, True])
def test_labels_outside_the_told_tokens_are_asked_for_by_a_bias(url, served, chats):
    task, examples = make_task(), make_examples(60, 1)
    if chats:
        task = task.model_copy(update={"messages": ("any",), "prompt": None})
        examples = [
            Example(each.text, each.prompt, each.label, messages=({"role": "user", "content": each.prompt},))
            for each in examples
        ]
    few = evaluate_endpoint(Endpoint(url, top=2), task, examples, None)
    assert few["outside"] > 0
    found = evaluate_endpoint(Endpoint(url, top=2, tokenizer=served.tokenizer), task, examples, None)
    assert found["score"] == pytest.approx(expected_score(make_task(), examples, served))
    assert found["by_logit_bias"] == found["outside"] == few["outside"]
    assert found["none_inside"] == 0


def test_a_chat_whose_labels_take_several_tokens_is_refused(url):
    task = make_task().model_copy(update={"messages": ("any",), "prompt": None, "labels": LONG_LABELS})
    examples = [
        Example(each.text, each.prompt, each.label, messages=({"role": "user", "content": each.prompt},))
        for each in make_examples(4, 1)
    ]
    with pytest.raises(SieveError, match="takes several tokens, and a chat cannot be continued"):
        evaluate_endpoint(Endpoint(url), task, examples, None)


def read_toy_task(path, **changes):
    return Task.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) | changes)


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory):
    """A pico model on llama-cpp-python's server: its URL, and the model and tokenizer that it serves."""
    pytest.importorskip("llama_cpp.server", reason="llama-cpp-python's server is not installed")
    from sieve_edge.device.llama import GGUF, LlamaTextModel
    from sieve_edge.export.to_gguf import write_gguf
    from sieve_edge.model.load import load_model
    from sieve_edge.model.source import find_model
    from tests.pico import make_bpe_tokenizer, make_pico

    folder = tmp_path_factory.mktemp("llama")
    loaded = load_model(find_model(str(make_pico("llama", folder / "hf", seed=3, tokens=make_bpe_tokenizer()))), "cpu")
    write_gguf(loaded.model, loaded.tokenizer, "pico", folder / GGUF)
    port = free_port()
    asked = [sys.executable, "-m", "llama_cpp.server", "--model", str(folder / GGUF), "--port", str(port)]
    asked += ["--n_ctx", "128", "--n_threads", "1", "--logits_all", "true", "--verbose", "false"]
    process = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}/v1"
    await_server(process, f"{url}/models")
    yield url, LlamaTextModel(folder / GGUF, 1, 2048), loaded.backend
    process.terminate()
    process.communicate(timeout=30)


@pytest.mark.parametrize("labels", [{"0": " bad", "1": " good"}, {"0": " bad film", "1": " good film"}])
@pytest.mark.parametrize("top", [20, 2])
def test_llama_cpp_pythons_server_is_scored_as_the_model_is(llama_server, toy_task, labels, top):
    url, model, tokenizer = llama_server
    task = read_toy_task(toy_task, labels=labels)
    examples = load_splits(task, 0)["test"][:40]
    exam = Examiner(task).exam(examples, tokenizer, ())
    found = evaluate_endpoint(Endpoint(url, top=top, tokenizer=tokenizer), task, examples, None)
    expected = exam.grade(exam.take(model, 256), []).score
    assert found["score"] == pytest.approx(expected, abs=0.03), "the cache holds 16 bits, in batches of other sizes"
    assert found["none_inside"] == 0
    if top == 20:
        # This server tells as many as are asked for; what follows a label is nothing that the model has learned.
        plain = evaluate_endpoint(Endpoint(url, top=900), task, examples, None)
        assert plain["score"] == pytest.approx(expected, abs=0.03)
    else:
        assert found["by_logit_bias"] > 0


def test_a_key_goes_only_where_it_is_named_and_into_no_message(monkeypatch):
    key = "sk-0123456789"
    monkeypatch.setenv("SIEVE_TEST_KEY", key)
    _, asked = score(lambda _, body: (200, told(right(body))))
    assert {header for _, header in asked} == {"Bearer none"}
    _, asked = score(lambda _, body: (200, told(right(body))), api_key_env="SIEVE_TEST_KEY")
    assert {header for _, header in asked} == {f"Bearer {key}"}
    for status, word in ((401, "refuses the key"), (400, "status 400")):
        with pytest.raises(SieveError, match=word) as caught:
            score(lambda *_, status=status: (status, {"error": {"message": f"no {key}"}}), api_key_env="SIEVE_TEST_KEY")
        assert key not in str(caught.value)


def test_a_pasted_key_is_refused_without_being_shown(toy_task, tmp_path):
    key = "sk-proj-0123456789abcdef"
    done = CliRunner().invoke(
        cli, ["evaluate", "--endpoint", "http://127.0.0.1:1/v1", "--task", str(toy_task), "--api-key-env", key]
    )
    assert (done.exit_code, key in done.output) == (2, False)
    assert "must be the name of an environment variable" in done.output
    tree = yaml.safe_load(toy_task.read_text(encoding="utf-8"))
    del tree["labels"]
    tree |= {"metric": "judge", "max_new_tokens": 3, "judge": {"api_key_env": key}}
    path = tmp_path / "judged.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    done = CliRunner().invoke(cli, ["evaluate", "--endpoint", "http://127.0.0.1:1/v1", "--task", str(path)])
    assert (done.exit_code, key in done.output) == (3, False)
    assert "judge.api_key_env: must be the name of an environment variable" in done.output
    tree["judge"] = {"api_key_env": "gsk_live_0123456789", "max_usd": 5}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    done = CliRunner().invoke(cli, ["evaluate", "--endpoint", "http://127.0.0.1:1/v1", "--task", str(path)])
    assert (done.exit_code, "gsk_live" in done.output) == (3, False), "what holds the key is not shown either"
    lower = "gsk_0123456789abcdef"
    done = CliRunner().invoke(
        cli, ["evaluate", "--endpoint", "http://127.0.0.1:1/v1", "--task", str(toy_task), "--api-key-env", lower]
    )
    assert (done.exit_code, lower in done.output) == (5, False)


def test_judged_answers_come_with_the_judges_facts_and_no_folder_of_runs(toy_task, tmp_path, monkeypatch):
    monkeypatch.setenv("SIEVE_TEST_KEY", "sk-none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load(toy_task.read_text(encoding="utf-8"))
    del tree["labels"]
    verdicts = ["correct", "", "who knows", "incorrect"]

    def reply(number, body):
        if "messages" in body:
            return said(verdicts[number % 4])
        return 200, words([f"answer {number}"], [-0.1], [{}])

    with fault_server(reply) as (url, _):
        judge = {"base_url": url, "api_key_env": "SIEVE_TEST_KEY", "concurrency": 1, "max_calls": 9}
        tree |= {"metric": "judge", "max_new_tokens": 3, "judge": judge}
        path = tmp_path / "judged.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        options = ["evaluate", "--endpoint", url, "--task", str(path), "--model", "m", "--limit", "8"]
        for _ in range(3):
            done = CliRunner().invoke(cli, options, catch_exceptions=False)
            assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout.splitlines()[-1])["judge"]
    assert (facts["asked"], facts["refused"], facts["unparsable"]) == (8, 2, 2), "each call has ceilings of its own"
    assert (tmp_path / "cache" / "sieve-edge" / "verdicts.sqlite").is_file()
    assert not (tmp_path / "runs").exists()
