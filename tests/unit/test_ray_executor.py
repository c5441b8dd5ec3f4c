"""Handing requests to workers that come late, finish out of order, or are lost: on a stand-in for ray."""

import random
from types import SimpleNamespace

import pytest

from sieve_edge.errors import ArtifactError, EnvironmentMissing, SieveError
from sieve_edge.search import ray_executor
from sieve_edge.search.ray_executor import RayExecutor
from sieve_edge.search.ray_worker import compute_facts
from sieve_edge.search.scoring import Outcome, Request


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class RayActorError(RayError):
    def __init__(self, told, actor_init_failed=False):
        super().__init__(told)
        self.actor_init_failed = actor_init_failed


NAMES = ("WorkerCrashedError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError")


class FakeRay:
    """Makes workers that do as ``behave`` says; whichever call is ready first is drawn."""

    def __init__(self, behave, seed=0, places=None):
        self.behave = behave
        self.places = places
        self.random = random.Random(seed)
        self.made = 0
        self.killed = []
        self.calls = {}
        kinds = {name: type(name, (RayError,), {}) for name in NAMES}
        self.exceptions = SimpleNamespace(
            RayError=RayError, RayTaskError=RayTaskError, RayActorError=RayActorError, **kinds
        )

    def remote(self, *given):
        self.made += 1
        worker = SimpleNamespace(number=self.made)
        for name in ("facts", "run"):
            setattr(worker, name, SimpleNamespace(remote=lambda *args, name=name: self.call(worker, name, *args)))
        return worker

    def call(self, worker, name, *args):
        ref = object()
        self.calls[ref] = (worker, name, args)
        return ref

    def wait(self, refs, num_returns, timeout):
        there = [ref for ref in refs if self.places is None or self.calls[ref][0].number <= self.places]
        return ([self.random.choice(there)], []) if there else ([], refs)

    def get(self, ref):
        worker, name, args = self.calls.pop(ref)
        return self.behave(worker.number, name, *args)

    def kill(self, worker):
        self.killed.append(worker.number)


class Told:
    def __init__(self):
        self.lines = []

    def warn(self, line):
        self.lines.append(line)

    def task(self, name, total, unit):
        from contextlib import nullcontext

        return nullcontext(lambda units: None)


FACTS = compute_facts("cpu")
REQUESTS = [Request({"0.o": rank}, "labels") for rank in range(12)]


def sound(number, name, request=None):
    return FACTS if name == "facts" else Outcome(value=float(request.ranks["0.o"]))


def executor(behave, workers=3, **settings):
    told = Told()
    fake = FakeRay(behave, **settings)
    return RayExecutor(fake, fake, (), workers, "cpu", told), fake, told


def values(made):
    return [outcome.value for outcome in made.run(REQUESTS)]


EXPECTED = [float(rank) for rank in range(12)]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_outcomes_come_in_the_order_of_the_requests(workers, seed):
    made, fake, _ = executor(sound, workers, seed=seed)
    assert values(made) == EXPECTED
    assert values(made) == EXPECTED, "a second batch too"
    assert list(made.run([])) == []
    assert (fake.made, made.lost) == (workers, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["RayActorError", *NAMES])
def test_a_lost_worker_is_replaced_and_its_request_scored_again(seed, name):
    def behave(number, what, request=None):
        if what == "run" and number == 2:
            raise getattr(fake.exceptions, name)("the node\nis gone")
        return sound(number, what, request)

    made, fake, told = executor(behave, seed=seed)
    assert values(made) == EXPECTED
    assert made.lost == (fake.made == 4)
    if made.lost:
        assert fake.killed == [2]
        assert told.lines == ["  ray: lost a worker (is gone); its work is done again, and another one starts"]


def test_a_worker_that_is_lost_before_it_is_there_is_replaced():
    def behave(number, what, request=None):
        if number == 1:
            raise RayActorError("gone")
        return sound(number, what, request)

    made, _, _ = executor(behave, workers=1)
    assert values(made) == EXPECTED
    assert made.lost == 1


def test_one_worker_is_enough_to_go_on():
    made, _, _ = executor(sound, workers=4, places=1)
    assert values(made) == EXPECTED


def test_workers_that_are_always_lost_end_the_search():
    def behave(number, what, request=None):
        if what == "run":
            raise RayActorError("out of memory")
        return FACTS

    made, _, _ = executor(behave, workers=2)
    with pytest.raises(SieveError, match="again and again, the last one because: out of memory"):
        values(made)
    assert made.lost == 7


def test_a_worker_that_cannot_start_ends_the_search_at_once():
    def behave(number, what, request=None):
        raise RayActorError("Traceback\n  No module named 'sieve_edge'\n", actor_init_failed=True)

    made, _, _ = executor(behave)
    with pytest.raises(SieveError, match=r"^a Ray worker cannot start: No module named 'sieve_edge'$"):
        values(made)


def test_no_worker_in_time_is_one_line(monkeypatch):
    monkeypatch.setattr(ray_executor, "PLACE_SECONDS", 0.0)
    made, _, _ = executor(sound, places=0)
    with pytest.raises(EnvironmentMissing, match="no worker could be placed within 0 s; `ray status`"):
        values(made)


def test_an_error_of_ours_comes_back_as_it_was():
    def behave(number, what, request=None):
        if what == "run":
            raise RayTaskError(ArtifactError("the projection bank has no rank 7"))
        return FACTS

    made, _, _ = executor(behave)
    with pytest.raises(ArtifactError, match=r"^the projection bank has no rank 7$"):
        values(made)


def test_an_error_of_the_cluster_is_one_line():
    def behave(number, what, request=None):
        if what == "run":
            raise RayError("several\nlines")
        return FACTS

    made, _, _ = executor(behave)
    with pytest.raises(SieveError, match=r"^Ray: lines; what was scored is kept"):
        values(made)


def test_other_versions_are_refused_and_other_processors_named():
    made, _, _ = executor(lambda number, what, request=None: {**FACTS, "torch": "1.0"})
    with pytest.raises(EnvironmentMissing, match=r"has torch 1\.0, this process .*pip install torch=="):
        values(made)

    def behave(number, what, request=None):
        return {**FACTS, "processor": "OTHER"} if what == "facts" else sound(number, what, request)

    made, _, _ = executor(behave)
    assert values(made) == EXPECTED
    assert made.other_processors == {"OTHER"}


def test_a_caller_that_stops_early_leaves_the_workers_usable():
    made, fake, _ = executor(sound, workers=2)
    some = made.run(REQUESTS)
    assert next(some).value == 0.0
    some.close()
    assert values(made) == EXPECTED
    assert fake.made == 2
