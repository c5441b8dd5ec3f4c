import numpy as np
import pytest

from sieve_edge.device import timing
from sieve_edge.device.timing import WARM_UP_REPEATS, median_interval, time_models

PREFILL, DECODE = "prefill", "decode"


class Clock:
    """Time that passes only when a model works."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class FakeModel:
    """Takes given milliseconds for a prompt and for each step; answers token = past length."""

    def __init__(self, name, clock, log, prefill_ms, steps_ms):
        self.name, self.clock, self.log = name, clock, log
        self.prefill_ms, self.steps_ms = prefill_ms, steps_ms
        self.prefills = 0

    def forward(self, input_ids, attention_mask, position_ids, past, logits_to_keep):
        past_tokens = past[0] if past else 0
        assert attention_mask.shape == (1, past_tokens + input_ids.shape[1])
        assert position_ids.tolist() == [list(range(past_tokens, past_tokens + input_ids.shape[1]))]
        assert logits_to_keep == 1
        if past:
            # The token that was said last is what comes in.
            assert input_ids.tolist() == [[past_tokens % 50]]
            self.clock.now += self.steps_ms[(past_tokens - 4) % len(self.steps_ms)] / 1e3
        else:
            self.clock.now += self.prefill_ms[self.prefills % len(self.prefill_ms)] / 1e3
            self.prefills += 1
        self.log.append((self.name, DECODE if past else PREFILL))
        total = attention_mask.shape[1]
        logits = np.zeros((1, 1, 50), dtype=np.float32)
        logits[0, 0, total % 50] = 1.0
        return logits, [total]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def run(clock, answer_tokens=1, decode_tokens=4, repeats=6):
    log = []
    models = {
        "dense": FakeModel("dense", clock, log, [10.0, 20.0], [1.0, 2.0, 3.0, 4.0]),
        "pruned": FakeModel("pruned", clock, log, [5.0, 8.0], [0.5]),
    }
    ticks = []
    result = time_models(
        models,
        {name: [1, 2, 3, 4] for name in models},
        answer_tokens,
        decode_tokens,
        repeats,
        np.random.default_rng(0),
        ticks.append,
    )
    assert ticks == [1] * repeats
    return result, log


def test_figures_are_medians_and_percentiles_of_what_passed(clock):
    result, _ = run(clock)
    dense = result["dense"]
    assert dense.time_to_first_token_ms == pytest.approx(15.0)
    assert dense.time_per_answer_ms == pytest.approx(15.0)
    assert dense.time_per_token_p50_ms == pytest.approx(2.5)
    assert dense.time_per_token_p95_ms == pytest.approx(np.percentile([1, 2, 3, 4] * 6, 95))
    assert dense.tokens_per_s == pytest.approx(400.0)
    assert dense.prompt_tokens_per_s == pytest.approx(np.median([400.0, 200.0]))
    assert dense.first_token_samples_ms == pytest.approx([10.0, 20.0] * 3)
    assert dense.token_samples_ms == pytest.approx([1.0, 2.0, 3.0, 4.0] * 6)


def test_an_answer_of_several_tokens_adds_its_decode_steps(clock):
    result, _ = run(clock, answer_tokens=3)
    assert result["dense"].time_per_answer_ms == pytest.approx(15.0 + 1.0 + 2.0)
    assert result["dense"].time_to_first_token_ms == pytest.approx(15.0)


def test_an_answer_longer_than_the_decoding_is_decoded_in_full(clock):
    result, _ = run(clock, answer_tokens=4, decode_tokens=1)
    assert result["dense"].time_per_answer_ms == pytest.approx(15.0 + 1.0 + 2.0 + 3.0)


def test_ratio_is_paired_by_repeat(clock):
    result, _ = run(clock)
    pruned = result["pruned"]
    # 10 / 5 and 20 / 8 in turn: the median of the pairs, not the ratio of the medians.
    assert pruned.speed_ratio == pytest.approx((2.0 + 2.5) / 2)
    low, high = pruned.speed_ratio_interval95
    assert 2.0 - 1e-9 <= low <= pruned.speed_ratio <= high <= 2.5 + 1e-9
    assert result["dense"].speed_ratio == 1.0
    assert result["dense"].speed_ratio_interval95 == (1.0, 1.0)


def test_models_alternate_and_the_warm_up_is_not_counted(clock):
    result, log = run(clock, repeats=4)
    prompts = [name for name, kind in log if kind == PREFILL]
    assert prompts == ["dense", "pruned", "pruned", "dense"] * ((4 + WARM_UP_REPEATS) // 2)
    assert len(result["dense"].answer_samples_ms) == 4


def test_median_interval_covers_the_median_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        _, low, high = median_interval(rng.normal(3.0, 1.0, 40), rng)
        hits += low <= 3.0 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_median_interval_repeats_with_its_seed():
    values = np.arange(30.0)
    first, second = (median_interval(values, np.random.default_rng(7)) for _ in range(2))
    assert first == second
    assert first[0] == 14.5
