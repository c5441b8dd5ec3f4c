"""The judge against servers on loopback: real words, faults, ceilings, what is kept, and where the key never goes."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import ValidationError

from sieve_edge.errors import EnvironmentMissing, JudgeError
from sieve_edge.protocols import Asked
from sieve_edge.task.judge import OpenAIJudge
from sieve_edge.task.judge_words import most_tokens, write_question
from sieve_edge.task.verdicts import VerdictBook
from sieve_edge.task_config import JudgeSettings
from tests.servers import fault_server, said, slow, trickling

KEY = "sk-very-secret-0123456789"
ASKED = [Asked(f"question {index}", f"answer {index}", ("right",)) for index in range(6)]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("SIEVE_TEST_KEY", KEY)


def make(url, folder, **changes):
    options = {"retries": 2, "timeout_s": 5.0, "concurrency": 1, **changes}
    return OpenAIJudge(
        JudgeSettings(base_url=url, api_key_env="SIEVE_TEST_KEY", **options), folder / "v.sqlite", "build"
    )


def right_if_even(number, body):
    question = body["messages"][1]["content"]
    return said("Correct." if int(question.split("question ")[1][0]) % 2 == 0 else "incorrect")


def test_verdicts_are_asked_once_and_kept(tmp_path):
    with fault_server(right_if_even) as (url, asked):
        judge = make(url, tmp_path, concurrency=4)
        assert judge.grade([*ASKED, ASKED[0]]) == [1, 0, 1, 0, 1, 0, 1]
        assert len(asked) == 6, "the same answer twice is one call"
        body, header = asked[0]
        assert (body["temperature"], body["seed"], body["model"]) == (0, 0, "gpt-4o")
        assert header == f"Bearer {KEY}"
        again = make(url, tmp_path)
        assert again.grade(ASKED) == [1, 0, 1, 0, 1, 0]
        assert len(asked) == 6
        assert again.facts() == {
            "model": "gpt-4o",
            "base_url": url,
            "asked": 0,
            "on_disk": 6,
            "refused": 0,
            "unparsable": 0,
            "cut_off": 0,
            "calls_of_build": 6,
        }
        other = OpenAIJudge(
            JudgeSettings(model="other", base_url=url, api_key_env="SIEVE_TEST_KEY"), tmp_path / "v.sqlite", "b"
        )
        other.grade(ASKED[:1])
        assert len(asked) == 7, "another judge is asked anew"


@pytest.mark.parametrize("fault", [(429, {"error": {"message": "slow down"}}), (503, b"{}"), (200, None)])
def test_passing_faults_are_tried_again(tmp_path, fault):
    with fault_server(lambda number, body: fault if number % 2 == 0 else right_if_even(number, body)) as (url, asked):
        assert make(url, tmp_path).grade(ASKED[:2]) == [1, 0]
        assert len(asked) == 4


def test_a_slow_judge_is_given_up(tmp_path):
    def reply(number, body):
        return right_if_even(number, body) if number < 2 else slow(3.0, said("correct"))(number, body)

    with fault_server(reply) as (url, asked):
        judge = make(url, tmp_path, timeout_s=0.3, retries=1)
        with pytest.raises(JudgeError, match=r"no usable answer \(APITimeoutError\) after 2 tries; verdicts so far"):
            judge.grade(ASKED)
        assert len(asked) == 4, "two that were answered, and two tries of the third"


def test_a_killed_build_asks_only_what_is_missing(tmp_path):
    broken = {"on": True}

    def reply(number, body):
        return (500, b"{}") if broken["on"] and number >= 3 else right_if_even(number, body)

    with fault_server(reply) as (url, asked):
        with pytest.raises(JudgeError, match="status 500"):
            make(url, tmp_path, retries=0).grade(ASKED)
        broken["on"] = False
        before = len(asked)
        judge = make(url, tmp_path)
        assert judge.grade(ASKED) == [1, 0, 1, 0, 1, 0]
        assert len(asked) - before == 3
        assert judge.facts()["asked"] == 3


@pytest.mark.parametrize("garbage", [b"not json", b"[]", {"choices": []}, {"hello": 1}])
def test_garbage_is_an_error_not_a_verdict(tmp_path, garbage):
    with (
        fault_server(lambda *_: (200, garbage)) as (url, _),
        pytest.raises(JudgeError, match=r"no usable answer .* after 1 try;"),
    ):
        make(url, tmp_path, retries=5).grade(ASKED[:1])


def test_refusals_and_other_words_are_counted_and_no_verdict(tmp_path):
    words = [None, "I cannot say", "incorrect", "", "correct", "correct, I think"]
    with fault_server(lambda number, _: said(words[number])) as (url, asked):
        judge = make(url, tmp_path)
        worth = judge.grade(ASKED)
        assert [None if math.isnan(each) else each for each in worth] == [None, None, 0, None, 1, None]
        judge.grade(ASKED)
        facts = judge.facts()
        assert (facts["asked"], facts["on_disk"]) == (6, 0), "what was asked here was not there before"
        assert (facts["refused"], facts["unparsable"]) == (2, 2), "each answer is counted once"
        assert judge.facts()["refused"] == 0, "a stage tells its own"
        assert len(asked) == 6


def test_what_a_judge_did_not_finish_is_no_refusal_and_no_verdict(tmp_path):
    def reply(number, _):
        words = ["", "the answer is correct", "incorrect"][number]
        status, tree = said(words)
        tree["choices"][0]["finish_reason"] = "length"
        return status, tree

    with fault_server(reply) as (url, _):
        judge = make(url, tmp_path)
        assert [math.isnan(each) for each in judge.grade(ASKED[:3])] == [True, True, False]
        facts = judge.facts()
        assert (facts["refused"], facts["unparsable"], facts["cut_off"]) == (0, 2, 2)


def test_ceilings_of_calls_and_money(tmp_path):
    with fault_server(right_if_even) as (url, asked):
        with pytest.raises(JudgeError, match=r"4 calls made; raise the task's judge\.max_calls"):
            make(url, tmp_path, max_calls=4).grade(ASKED)
        assert len(asked) == 4
    prices = {"usd_per_million_prompt_tokens": 1e5, "usd_per_million_answer_tokens": 1e5}
    # A call costs 1.10 USD, and before it is made as much is set aside as it may cost.
    most = 0.1 * (most_tokens(write_question(ASKED[0])) + 8)
    for concurrency in (1, 8):
        folder = tmp_path / str(concurrency)
        with fault_server(right_if_even) as (url, asked):
            judge = make(url, folder, max_usd=most + 2.5, concurrency=concurrency, **prices)
            with pytest.raises(
                JudgeError, match=r"USD spent or set aside for calls, the next one may cost .*; raise it"
            ):
                judge.grade(ASKED)
            assert len(asked) == 3 or (concurrency == 8 and len(asked) < 3)
            spent = judge.facts()["usd_of_build"]
            assert spent == pytest.approx(1.1 * len(asked))
            assert spent < most + 2.5
            with pytest.raises(JudgeError, match=r"USD spent"):
                make(url, folder, max_usd=most + 1.0, **prices).grade(ASKED)
            assert judge.facts()["usd_of_build"] == spent, "a build that goes on counts on"
    for number, usage in enumerate((None, "much", [1], {"prompt_tokens": "10", "completion_tokens": 1})):
        told = fault_server(lambda *_, usage=usage: (200, said("correct")[1] | {"usage": usage}))
        with told as (url, _), pytest.raises(JudgeError, match="tells no usage"):
            make(url, tmp_path / f"usage{number}", max_usd=most, **prices).grade(ASKED)


def test_what_a_filter_holds_back_is_a_refusal(tmp_path):
    filtered = {"error": {"message": "filtered", "code": "content_filter"}}
    with fault_server(lambda number, body: (400, filtered) if number == 0 else right_if_even(number, body)) as (url, _):
        judge = make(url, tmp_path)
        assert [math.isnan(each) for each in judge.grade(ASKED[:3])] == [True, False, False]
        assert judge.facts()["refused"] == 1


def test_every_try_counts_as_a_call(tmp_path):
    with fault_server(lambda *_: (503, b"{}")) as (url, asked):
        with pytest.raises(JudgeError, match="status 503"):
            make(url, tmp_path, retries=1).grade(ASKED[:1])
        assert len(asked) == 2
        assert make(url, tmp_path).facts()["calls_of_build"] == 2


@pytest.mark.parametrize("first", [(401, {"error": {"message": "no"}}), (200, b"not json")])
def test_when_one_call_fails_the_others_are_not_tried_again(tmp_path, monkeypatch, first):
    monkeypatch.setattr("sieve_edge.task.judge.pause_s", lambda *_: 5.0)
    both = threading.Barrier(2)

    def reply(number, _):
        if number < 2:
            both.wait(5.0)
        return first if number == 0 else (503, b"{}")

    with fault_server(reply) as (url, asked):
        with pytest.raises((EnvironmentMissing, JudgeError)):
            make(url, tmp_path, retries=5, concurrency=2).grade(ASKED[:2])
        assert len(asked) == 2


def test_an_interrupted_judge_makes_no_further_call(tmp_path, monkeypatch):
    tried = threading.Event()

    def reply(number, _):
        tried.set()
        return 503, b"{}"

    def interrupted(_):
        tried.wait(5.0)
        raise KeyboardInterrupt

    monkeypatch.setattr("sieve_edge.task.judge.wait", interrupted)
    monkeypatch.setattr("sieve_edge.task.judge.pause_s", lambda *_: 5.0)
    with fault_server(reply) as (url, asked):
        with pytest.raises(KeyboardInterrupt):
            make(url, tmp_path, retries=5, concurrency=2).grade(ASKED)
        assert len(asked) <= 2


def test_ceilings_hold_among_books_that_share_a_file(tmp_path, monkeypatch):
    look = VerdictBook._spent

    def dawdling(book, table):
        found = look(book, table)
        time.sleep(0.1)
        return found

    monkeypatch.setattr(VerdictBook, "_spent", dawdling)
    books = [VerdictBook(tmp_path / "v.sqlite", "build") for _ in range(8)]

    def reserve(book):
        try:
            book.reserve(20, 1.0, 0.3, "judge")
        except JudgeError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(reserve, books)) == 3
    assert books[0].spent() == (3, pytest.approx(0.9))
    books[1].settle(-0.2)
    books[2].reserve(20, 1.0, 0.3, "judge")
    with pytest.raises(JudgeError, match=r"1\.0000 USD spent or set aside"):
        books[3].reserve(20, 1.0, 0.3, "judge")


def test_a_reply_that_trickles_in_is_given_up_in_time(tmp_path):
    with fault_server(trickling(0.1, 100)) as (url, _):
        began = time.monotonic()
        with pytest.raises(JudgeError, match=r"no usable answer \(APITimeoutError\) after 1 try"):
            make(url, tmp_path, timeout_s=0.5, retries=0).grade(ASKED[:1])
        assert time.monotonic() - began < 5.0


def test_an_empty_database_is_made_whole(tmp_path):
    (tmp_path / "v.sqlite").touch()
    with fault_server(right_if_even) as (url, _):
        assert make(url, tmp_path).grade(ASKED[:1]) == [1]
    (tmp_path / "v.sqlite").write_bytes(b"no database at all, but something else" * 20)
    with fault_server(right_if_even) as (url, _), pytest.raises(JudgeError, match="cannot read or keep verdicts"):
        make(url, tmp_path).grade(ASKED[:1])


@pytest.mark.parametrize("url", ["https://me:secret@host/v1", "https://host/v1?key=secret", "host/v1"])
def test_an_address_that_holds_a_key_is_refused(url):
    with pytest.raises(ValidationError) as caught:
        JudgeSettings(base_url=url)
    assert "base_url" in str(caught.value)


@pytest.mark.parametrize("status", [401, 400, 404])
def test_the_key_is_in_no_message_and_in_no_file(tmp_path, status, capfd):
    echo = {"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}}
    with fault_server(lambda *_: (status, echo)) as (url, _):
        kind = EnvironmentMissing if status == 401 else JudgeError
        with pytest.raises(kind) as caught:
            make(url, tmp_path).grade(ASKED[:1])
    assert str(status) in str(caught.value)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    with fault_server(right_if_even) as (url, _):
        judge = make(url, tmp_path)
        judge.grade(ASKED)
        assert KEY not in str(judge.facts())
    assert KEY.encode() not in (tmp_path / "v.sqlite").read_bytes()
    assert KEY not in "".join(capfd.readouterr())


def test_a_missing_key_says_which_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("SIEVE_TEST_KEY")
    with pytest.raises(EnvironmentMissing, match="SIEVE_TEST_KEY is not set"):
        make("http://127.0.0.1:9/v1", tmp_path).grade(ASKED[:1])
