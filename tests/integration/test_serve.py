"""The server: what openai's client gets from an artifact, and that it scores what validate said."""

import numpy as np
import openai
import pytest

from sieve_edge.cli.serve import open_served
from sieve_edge.device.completions import LabelPrior, Sampling, complete, label_prior
from sieve_edge.device.ort import OrtTextModel
from sieve_edge.device.replies import Served
from sieve_edge.device.runtimes import open_tokenizer
from sieve_edge.errors import ArtifactError
from sieve_edge.protocols import Chat
from sieve_edge.task.endpoint import Endpoint, evaluate_endpoint
from sieve_edge.task.examiner import Examiner
from tests.command import command, last_json
from tests.servers import running_app, serving
from tests.tiny_onnx import LABELS, WORDS, make_examples, make_task, write_folder

PROMPT = "Review: fine film Mood:"
BIAS = 3.0
QUICK = ("calibration_tokens=600", "threads=1", "learn.fisher_prompts=16", "search.strategy=uniform", "tolerance=0.3")
CHAT = "{% for message in messages %}{{ message.content }} {% endfor %}{% if add_generation_prompt %}Mood :{% endif %}"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("served") / "pruned", noise=0.6, bias=BIAS)
    tokenizer = open_tokenizer(folder)
    labels = [tokenizer.encode(answer).ids for answer in LABELS.values()]
    prior = label_prior(labels, [BIAS, 0.0])
    return Served("tiny", OrtTextModel(folder, 1), tokenizer, (), prior, Chat(CHAT), 64)


@pytest.fixture(scope="module")
def url(served):
    with running_app(served) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def test_a_completion_with_its_likelihoods(client, served):
    reply = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=2, temperature=0, logprobs=3)
    choice = reply.choices[0]
    ids = served.tokenizer.encode(PROMPT).ids
    steps = list(complete(served.model, ids, Sampling(2, top=3), served.prior, ()))
    assert choice.logprobs.token_logprobs == pytest.approx([step.log_likelihood for step in steps])
    assert [len(each) for each in choice.logprobs.top_logprobs] == [3, 3]
    assert choice.text == served.tokenizer.decode([step.token for step in steps])
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(ids), 2)
    assert (choice.finish_reason, reply.model) == ("length", "tiny")
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_likelihoods_are_those_of_the_model_with_the_prior_added(served):
    ids = served.tokenizer.encode(PROMPT).ids
    shape = np.asarray([ids]), np.ones((1, len(ids)), dtype=np.int64), np.arange(len(ids))[None]
    logits = served.model.forward(*shape, [], 1)[0][0, -1].astype(np.float64)
    logits[WORDS.index("negative")] += BIAS
    expected = logits - np.log(np.exp(logits).sum())
    step = next(complete(served.model, ids, Sampling(1, top=len(WORDS)), served.prior, ()))
    assert dict(step.top) == pytest.approx(dict(enumerate(expected)), abs=1e-9)


def test_the_prior_goes_where_labels_begin_to_differ():
    assert label_prior([[5, 1], [5, 2]], [0.5, 0.0]) == LabelPrior((5,), {1: 0.5, 2: 0.0})
    plain, later = label_prior([[1], [2]], [0.5, 0.0]), label_prior([[5, 1], [5, 2]], [0.5, 0.0])
    assert plain.at([7], []) == later.at([7], [5]) == later.at([7, 5], []) == {1: 0.5, 2: 0.0}
    assert plain.at([7], [1]) == later.at([7], []) == later.at([7, 5], [5, 5]) == {}
    assert label_prior([[1, 3], [1, 4], [2]], [0.1, 0.1, 0.3]).bias == {1: 0.1, 2: 0.3}, "one token, one bias"
    assert label_prior([[1, 3], [1, 4], [2]], [0.1, 0.2, 0.3]) is None, "all labels are corrected, or none"
    assert label_prior([[1], [2]], []).bias == {}


def test_bias_stop_strings_and_several_prompts(client, served):
    word = WORDS.index("witty")
    reply = client.completions.create(
        model="tiny", prompt=[PROMPT, "film"], max_tokens=3, temperature=0, logit_bias={str(word): 100}
    )
    assert [choice.text.split() for choice in reply.choices] == [["witty"] * 3] * 2
    reply = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=3, temperature=0, logit_bias={str(word): 100}, stop=["y w"]
    )
    assert (reply.choices[0].text.strip(), reply.choices[0].finish_reason) == ("witt", "stop")
    ids = served.tokenizer.encode(PROMPT).ids
    by_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=1, temperature=0)
    assert (
        by_ids.choices[0].text
        == client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1, temperature=0).choices[0].text
    )


def test_streams_say_the_same(client):
    whole = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, temperature=0, stop=["nothing"])
    pieces = list(
        client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=5, temperature=0, stop=["nothing"], stream=True
        )
    )
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_chat_is_written_by_the_template(client, served):
    messages = [{"role": "user", "content": "Review : fine film"}]
    chat = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=2, temperature=0, logprobs=True, top_logprobs=2
    )
    plain = client.completions.create(model="tiny", prompt="Review : fine film Mood :", max_tokens=2, temperature=0)
    assert chat.choices[0].message.content == plain.choices[0].text
    assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
    pieces = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2, temperature=0, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == plain.choices[0].text


def test_draws_are_repeated_by_the_seed_and_follow_the_likelihoods(served):
    ids = served.tokenizer.encode(PROMPT).ids

    def draw(seed, **options):
        return [
            step.token for step in complete(served.model, ids, Sampling(6, 1.5, seed=seed, **options), served.prior, ())
        ]

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(8)}) > 1
    assert draw(1, top_p=1e-6) == draw(2, top_p=1e-6), "the likeliest token alone is left"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"max_tokens": 100}, "this server holds 64"),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"temperature": 3}, "temperature: "),
        ({"n": 2}, "n: "),
        ({"logit_bias": {"999": 1}}, "logit_bias: 999 is no token id"),
        ({"logprobs": 50}, "logprobs: "),
        ({"echo": True}, "echo: "),
        ({"stream": True, "logprobs": 1}, "stream: tells no log-probabilities"),
    ],
)
def test_what_cannot_be_answered_is_one_line(client, changes, told):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "tiny", "prompt": PROMPT, "max_tokens": 1, **changes})
    assert told in caught.value.body["message"]


def test_an_endpoint_scores_what_the_model_scores_with_its_prior(url, served):
    task, examples = make_task(), make_examples(60, 1)
    exam = Examiner(task).exam(examples, served.tokenizer, ())
    answers = exam.take(served.model, 256)
    found = evaluate_endpoint(Endpoint(url, concurrency=3), task, examples, None)
    assert found["score"] == pytest.approx(exam.grade(answers, [BIAS, 0.0]).score)
    assert (found["outside"], found["none_inside"], found["model"]) == (0, 0, "tiny")
    few = evaluate_endpoint(Endpoint(url, top=1), task, examples, None)
    assert few["outside"] >= 60, "of one told token at most one label is there"


def test_a_reader_that_stalls_keeps_nobody_from_being_answered(client):
    stalled = [
        client.completions.create(model="tiny", prompt=PROMPT, max_tokens=40, temperature=0, stream=True)
        for _ in range(50)
    ]
    reply = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1, temperature=0, timeout=30)
    assert reply.choices[0].text
    for stream in stalled:
        stream.close()


def test_a_served_build_scores_what_validate_said(pico, toy_task, toy_target, tmp_path):
    run = tmp_path / "run"
    settings = [word for setting in QUICK for word in ("--set", setting)]
    options = ("--target", toy_target, "--task", toy_task, "--model", pico("llama"), "--run-dir", run)
    built = command("build", *options, *settings)
    assert built.returncode in (0, 4), built.stderr
    with serving(run) as address:
        done = command("evaluate", "--endpoint", address, "--task", toy_task)
    assert done.returncode == 0, done.stderr
    assert last_json(done)["score"] == pytest.approx(last_json(built)["accuracy"]["pruned"]["test"]["corrected"])
    gone = command("evaluate", "--endpoint", address, "--task", toy_task, "--model", "any", "--limit", "1")
    assert gone.returncode == 3
    assert "is the server there?" in gone.stderr


def test_a_folder_that_is_no_finished_build_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not a finished build"):
        open_served(tmp_path, "pruned", None, 64, prior=True)
