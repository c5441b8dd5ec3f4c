"""Tasks whose answers the model writes: the same words in every runtime, whole builds, and a judge in the search."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sieve_edge.artifacts import read_manifest
from sieve_edge.device.ort import OrtTextModel
from sieve_edge.export.to_onnx import write_graph
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.load import load_model
from sieve_edge.model.source import find_model
from sieve_edge.resolve import load_recipe
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import load_splits
from sieve_edge.task.generate import Ending, answer_greedily
from sieve_edge.task_config import Task
from sieve_edge.tune.batches import answer_ending, right_answers
from tests.command import ENVIRONMENT, command, last_json
from tests.markup import check_page
from tests.servers import fault_server, said, serving

QUICK = ("calibration_tokens=1500", "threads=1", "learn.fisher_prompts=64", "search.part=50")
SETTINGS = tuple(word for setting in QUICK for word in ("--set", setting))
KEY = "sk-of-the-tests-0123"


@pytest.fixture
def written(toy_task, tmp_path):
    """Write a task whose answer is the word for the label; what comes after it does not count."""

    def write(**changes):
        tree = yaml.safe_load(toy_task.read_text(encoding="utf-8"))
        del tree["labels"]
        words = {"label_values": {"0": "bad", "1": "good"}}
        tree |= {"source": tree["source"] | words, "transfer": tree["transfer"] | words}
        tree |= {"name": "toy-words", "metric": "contains", "max_new_tokens": 3, **changes}
        path = tmp_path / "toy-words.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    return write


def read_task(path: Path) -> Task:
    return Task.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_greedy_answers_are_those_of_transformers_whatever_the_batches(pico, written):
    loaded = load_model(find_model(str(pico("llama"))), "cpu")
    task = read_task(written())
    exam = Examiner(task).exam(load_splits(task, 0)["test"][:40], loaded.backend, loaded.ends)
    model = TorchTextModel(loaded.model, "cpu")
    together, alone = (
        answer_greedily(model, exam.prompts, 5, lambda ids: ids[-1] in loaded.ends, tokens) for tokens in (400, 1)
    )
    assert together == alone
    for prompt, answer in zip(exam.prompts, together, strict=True):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            expected = loaded.model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=list(loaded.ends))
        assert answer == expected[0, len(prompt) :].tolist()


def test_onnx_runtime_writes_the_same_words_as_torch(pico, written, tmp_path):
    loaded = load_model(find_model(str(pico("qwen2"))), "cpu")
    task = read_task(written())
    exam = Examiner(task).exam(load_splits(task, 0)["test"], loaded.backend, loaded.ends)
    write_graph(loaded.model, tmp_path)
    said_by = [exam.take(model, 256) for model in (TorchTextModel(loaded.model, "cpu"), OrtTextModel(tmp_path, 1))]
    assert said_by[0] == said_by[1]
    assert exam.grade(said_by[0]).score > 0.8


def test_stop_strings_and_the_end_token_end_an_answer(pico, written):
    loaded = load_model(find_model(str(pico("llama"))), "cpu")
    task = read_task(written(stop=["d"]))
    ending = Ending(loaded.backend, loaded.ends, task.stop)
    good, film = (loaded.encode(word, special=False) for word in (" good", " film"))
    assert [ending.reached(ids) for ids in (film, good, [*film, *loaded.ends])] == [False, True, True]
    assert [ending.text(ids) for ids in (film, good, [*film, *loaded.ends], [*loaded.ends])] == [
        "film",
        "goo",
        "film",
        "",
    ]


@pytest.mark.parametrize("stop", [[" film"], []])
def test_tuning_trains_on_answers_that_end_where_they_are_cut(pico, written, stop):
    loaded = load_model(find_model(str(pico("llama"))), "cpu")
    task = read_task(written(stop=stop))
    examples = load_splits(task, 0)["calibration"][:8]
    ending = answer_ending(loaded, task)
    trained_on = [
        [token for token in row.tolist() if token >= 0]
        for batch in right_answers(loaded, examples, ending, load_recipe(())).batches
        for row in batch.targets_BK
    ]
    answers = [[*loaded.encode(example.answer, special=False), *ending] for example in examples]
    assert sorted(trained_on) == sorted(answers)
    assert len(trained_on[0]) == 2
    reached = Ending(loaded.backend, loaded.ends, task.stop).reached
    assert [[reached(row[:count]) for count in (1, 2)] for row in trained_on] == [[False, True]] * 8


def test_a_label_is_trained_on_alone(pico, toy_task):
    assert answer_ending(load_model(find_model(str(pico("llama"))), "cpu"), read_task(toy_task)) == []


def test_a_written_task_is_built_to_a_validated_artifact(pico, written, toy_target, tmp_path):
    run = tmp_path / "run"
    options = ("--target", toy_target, "--task", written(), "--model", pico("llama"), "--run-dir", run, *SETTINGS)
    done = command("build", *options)
    assert done.returncode in (0, 4), done.stderr
    result = last_json(done)
    assert result["metric"] == "contains"
    assert result["accuracy"]["dense"]["test"]["corrected"] > 0.8
    assert result["accuracy"]["baseline"]["is"].startswith("always '")
    assert result["workload"]["answer_tokens"] == 3
    assert result["kept_fraction"]["linears"] < 1.0
    answers = json.loads((run / "validate" / "answers-pruned-test.json").read_text(encoding="utf-8"))["result"][
        "answers"
    ]
    task = read_task(written())
    references = [item.references[0] for item in load_splits(task, 0)["test"]]
    right = np.mean([reference in answer.split() for reference, answer in zip(references, answers, strict=True)])
    assert result["accuracy"]["pruned"]["test"]["corrected"] == pytest.approx(right)
    facts = json.loads((run / "export" / "pruned" / "sieve_edge.json").read_text(encoding="utf-8"))
    assert (facts["labels"], facts["prior"], facts["stop"]) == ([], {"dense": [], "pruned": []}, ["\n"])
    assert "Metric: contains" in (run / "report.md").read_text(encoding="utf-8")
    page = check_page((run / "report.html").read_text(encoding="utf-8"))
    found = json.loads((run / "validate" / "differences.json").read_text(encoding="utf-8"))
    dense = json.loads((run / "validate" / "answers-dense-test.json").read_text(encoding="utf-8"))["result"]["answers"]
    assert found["differing"] == sum(one != other for one, other in zip(dense, answers, strict=True))
    assert len(page.of("article")) == min(found["differing"], 10)
    assert {"answer", "first-token", "token"} <= {item.attributes["id"] for item in page.of("svg")}
    assert command("card", run).returncode == 0
    card = (run / "export" / "pruned" / "README.md").read_text(encoding="utf-8")
    assert "what the model writes greedily, up to 3 tokens" in card
    with serving(run) as address:
        scored = command("evaluate", "--endpoint", address, "--task", written())
    assert scored.returncode == 0, scored.stderr
    assert last_json(scored)["score"] == pytest.approx(result["accuracy"]["pruned"]["test"]["corrected"])


def question_and_answer(body):
    words = body["messages"][1]["content"]
    question = words.removeprefix("Question:\n").split("\n\nReference answers:")[0]
    return question, words.split("Candidate answer:\n")[1].split("\n\nVerdict:")[0]


def right_word(_, body):
    reference = body["messages"][1]["content"].split("Reference answers:\n- ")[1].split("\n")[0]
    answer = question_and_answer(body)[1]
    return said("correct" if answer.split()[:1] == [reference] else "incorrect")


def test_a_judge_grades_what_survives_and_is_asked_nothing_twice(pico, written, toy_target, tmp_path):
    with fault_server(right_word) as (url, asked):
        judge = {"base_url": url, "api_key_env": "SIEVE_TEST_KEY", "model": "wise", "screen": "contains"}
        task = written(metric="judge", judge=judge)
        run = tmp_path / "run"
        words = ("build", "--target", toy_target, "--task", task, "--model", pico("llama"), "--run-dir", run, *SETTINGS)

        def build():
            environment = {**ENVIRONMENT, "SIEVE_TEST_KEY": KEY}
            command = [sys.executable, "-m", "sieve_edge.cli", *map(str, (*words, "--quiet"))]
            return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

        done = build()
        assert done.returncode in (0, 4), done.stderr
        result = last_json(done)
        assert result["metric"] == "judge"
        # Three words are never one word exactly, so that both agree on what is wrong only.
        judged_right = result["accuracy"]["pruned"]["test"]["corrected"]
        assert judged_right > 0.8
        assert result["judge_agreement"] == {"exact_match": 0.0, "agreement": pytest.approx(1 - judged_right)}
        # Five steps of bisection over the ladder, three sizes after refit; then fuse, and validate with both models.
        told = "foreseen to be shown 1600 answers (calibrate 100, search 800, fuse 100, validate 600)"
        assert told in done.stderr.split("score dense")[0], "before anything is asked"
        bodies = [json.dumps(body, sort_keys=True) for body, _ in asked]
        assert len(set(bodies)) == len(bodies), "nothing was asked twice"
        told = read_manifest(run / "search").metrics["judge"]
        assert told["model"] == "wise"
        assert told["asked"] + told["on_disk"] > 0
        assert set(result["judge"]) == {"calibrate", "search", "fuse", "validate"}
        assert sum(each["asked"] for each in result["judge"].values()) == len(asked)
        calibrated = result["judge"]["calibrate"]["asked"]
        assert f"| calibrate | {calibrated} | 0 | 0 | 0 | 0 |" in (run / "report.md").read_text(encoding="utf-8")
        page = check_page((run / "report.html").read_text(encoding="utf-8"))
        assert "of these cut off" in {item.text for item in page.of("th")}
        history = [json.loads(line) for line in (run / "search" / "history.jsonl").read_text().splitlines()]
        prompts = [item.prompt for item in load_splits(read_task(task), 0)["selection"]]
        pairs = [set(zip(prompts, each.get("answers", ()), strict=False)) for each in history]
        survived = set().union(*(each for each in pairs if len(each) == len(prompts)))
        given_up = set().union(*(each for each in pairs if len(each) < len(prompts))) - survived
        judged = {question_and_answer(body) for body, _ in asked}
        dense = json.loads((run / "calibrate" / "dense_answers.json").read_text(encoding="utf-8"))
        assert survived & judged
        assert not (given_up - set(zip(prompts, dense, strict=True))) & judged
        before = len(asked)
        for verb in ("search", "fuse", "validate"):
            (run / verb / "manifest.json").unlink()
        again = build()
        # Whether a pico model is faster than the dense one is chance; what it answers is not.
        assert again.returncode in (0, 4), again.stderr
        assert last_json(again)["accuracy"] == result["accuracy"]
        assert len(asked) == before, "verdicts of the first build were on disk"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(KEY.encode() not in path.read_bytes() for path in files)
    assert KEY not in done.stdout + done.stderr


def test_a_judge_that_says_no_verdict_is_named_and_not_the_model(pico, written, toy_target, tmp_path):
    with fault_server(lambda *_: said("Let me think.")) as (url, _):
        task = written(metric="judge", judge={"base_url": url, "api_key_env": "SIEVE_TEST_KEY", "model": "wise"})
        words = ("build", "--target", toy_target, "--task", task, "--model", pico("llama"), "--quiet", *SETTINGS)
        command_line = [sys.executable, "-m", "sieve_edge.cli", *map(str, (*words, "--run-dir", tmp_path / "run"))]
        environment = {**ENVIRONMENT, "SIEVE_TEST_KEY": KEY}
        done = subprocess.run(command_line, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 3
    assert (
        "judge wise: gave no verdict on 100% of the dense model's answers, at most 10% may go without one "
        "(0 refused, 100 unparsable, 0 of these cut off); raise judge.max_answer_tokens, or choose another judge"
    ) in done.stderr


def test_more_answers_than_the_judge_may_be_asked_about_are_refused_first(pico, written, toy_target, tmp_path):
    task = written(metric="judge", judge={"base_url": "http://127.0.0.1:9/v1", "max_calls": 1599})
    words = ("--target", toy_target, "--task", task, "--model", pico("llama"), "--run-dir", tmp_path / "run", *SETTINGS)
    done = command("build", *words, "--quiet")
    assert done.returncode == 3
    assert "foreseen to show it 1600 answers (calibrate 100, search 800, fuse 100, validate 600)" in done.stderr
    assert "judge.max_calls is 1599; raise the task's judge.max_calls" in done.stderr


def test_llama_cpp_writes_the_same_words_as_torch(written, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make runtime")
    from sieve_edge.device.llama import GGUF, LlamaTextModel
    from sieve_edge.export.to_gguf import write_gguf
    from tests.pico import make_bpe_tokenizer, make_pico

    loaded = load_model(
        find_model(str(make_pico("llama", tmp_path / "llama", seed=3, tokens=make_bpe_tokenizer()))), "cpu"
    )
    task = read_task(written())
    exam = Examiner(task).exam(load_splits(task, 0)["test"][:60], loaded.backend, loaded.ends)
    write_gguf(loaded.model, loaded.tokenizer, "pico", tmp_path / GGUF)
    model = LlamaTextModel(tmp_path / GGUF, 1, 2048, "f32")
    assert exam.take(model, 256) == exam.take(TorchTextModel(loaded.model, "cpu"), 256)


def test_a_model_that_cannot_do_the_task_is_refused(pico, written, toy_target, tmp_path):
    options = ("--target", toy_target, "--task", written(metric="exact_match"), "--model", pico("llama"))
    done = command("calibrate", *options, "--run-dir", tmp_path / "run", *SETTINGS)
    if done.returncode == 0:
        pytest.fail("the model's three words should never be one word exactly")
    assert done.returncode == 3
    assert "dense model's exact_match 0.0" in done.stderr
    assert "score of always '" in done.stderr


def test_prompts_longer_than_the_model_holds_are_refused(pico, written, toy_target, tmp_path):
    task = written(prompt="Text: " + "film " * 70 + "{{ text }} Sentiment:")
    options = ("--target", toy_target, "--task", task, "--model", pico("llama"), "--run-dir", tmp_path / "run")
    done = command("calibrate", *options, *SETTINGS)
    assert done.returncode == 3
    assert "the model holds 64; set max_words" in done.stderr
