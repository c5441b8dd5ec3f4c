"""What method.md says of projections, on random matrices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sieve_edge.errors import CalibrationError
from sieve_edge.learn.baselines import gradient_post, gradient_pre, input_pca, weight_svd
from sieve_edge.learn.projections import damped, project_input_side, project_output_side, relative_error, roots

CUT = 1e-12
shapes = st.tuples(st.integers(3, 14), st.integers(3, 14))
seeds = st.integers(0, 10_000)


def problem(shape, seed, tokens=60):
    generator = torch.Generator().manual_seed(seed)
    out_features, in_features = shape
    weight = torch.randn(out_features, in_features, generator=generator, dtype=torch.float64)
    mixing = torch.randn(in_features, in_features, generator=generator, dtype=torch.float64)
    data = mixing @ torch.randn(in_features, tokens, generator=generator, dtype=torch.float64)
    return weight, data, generator


def plain(side, weight, gram):
    if side == "input":
        return project_input_side(weight, gram, weight.T @ weight, CUT)
    identity = torch.eye(len(weight), dtype=torch.float64)
    return project_output_side(weight, weight @ gram @ weight.T, identity, CUT)


@given(shapes, seeds)
def test_gram_loss_is_data_loss(shape, seed):
    weight, data, generator = problem(shape, seed)
    other = torch.randn(*shape, generator=generator, dtype=torch.float64)
    from_data = ((weight - other) @ data).square().sum() / (weight @ data).square().sum()
    assert relative_error(weight, other, data @ data.T) == pytest.approx(float(from_data), rel=1e-9)


@given(shapes, seeds, st.sampled_from(["input", "output"]))
def test_closed_form_meets_the_singular_value_tail_at_every_rank(shape, seed, side):
    weight, data, _ = problem(shape, seed)
    gram = data @ data.T
    factors = plain(side, weight, gram)
    energy = torch.linalg.svdvals(weight @ data).square()
    for rank in range(1, min(shape) + 1):
        approximate = factors.up_RO[:rank].T @ factors.down_RI[:rank]
        tail = float(energy[rank:].sum() / energy.sum())
        assert relative_error(weight, approximate, gram) == pytest.approx(tail, abs=1e-8)
        assert float(factors.error_R[rank]) == pytest.approx(tail, abs=1e-8)


@given(shapes, seeds, st.sampled_from(["input", "output"]))
def test_closed_form_error_never_grows_with_rank(shape, seed, side):
    weight, data, _ = problem(shape, seed)
    errors = plain(side, weight, data @ data.T).error_R
    assert errors[0] == pytest.approx(1.0)
    assert bool((errors.diff() <= 1e-12).all())


@given(shapes, seeds, st.floats(0.01, 1.0))
def test_both_sides_find_the_same_optimum_in_the_fisher_metric(shape, seed, damping):
    weight, data, generator = problem(shape, seed)
    gram = data @ data.T
    gradients = torch.randn(shape[0], 5, generator=generator, dtype=torch.float64)
    fisher = gradients @ gradients.T
    trace = float(fisher.trace())
    metric_in = damped(weight.T @ fisher @ weight, weight.T @ weight, trace, shape[0], damping)
    metric_out = damped(fisher, torch.eye(shape[0], dtype=torch.float64), trace, shape[0], damping)
    from_input = project_input_side(weight, gram, metric_in, CUT)
    from_output = project_output_side(weight, weight @ gram @ weight.T, metric_out, CUT)
    rank = max(min(shape) // 2, 1)
    root, _, _ = roots(metric_out, CUT)

    def loss(factors):
        return relative_error(root @ weight, root @ factors.up_RO[:rank].T @ factors.down_RI[:rank], gram)

    best = torch.linalg.svdvals(root @ weight @ data).square()
    tail = float(best[rank:].sum() / best.sum())
    assert loss(from_input) == pytest.approx(tail, abs=1e-7)
    assert loss(from_output) == pytest.approx(tail, abs=1e-7)


@given(shapes, seeds)
def test_no_method_beats_the_closed_form_and_the_papers_pre_form_stays_above(shape, seed):
    weight, data, generator = problem(shape, seed)
    gram = data @ data.T
    rank = max(min(shape) // 2, 1)
    bound = float(plain("input", weight, gram).error_R[rank])
    pre_down, pre_up = gradient_pre(weight, gram, rank, 40, generator)
    post_down, post_up = gradient_post(weight, weight @ gram @ weight.T, rank, 40, generator)
    baselines = (weight_svd(weight), input_pca(weight, gram, CUT))
    nested = [(factors.up_RO[:rank].T, factors.down_RI[:rank]) for factors in baselines]
    rivals = [(pre_up, pre_down), (post_up, post_down), *nested]
    for up, down in rivals:
        assert relative_error(weight, up @ down, gram) >= bound - 1e-9


def test_the_post_form_of_gradient_descent_reaches_the_bound():
    weight, data, generator = problem((12, 9), 3)
    output_gram = weight @ data @ data.T @ weight.T
    down, up = gradient_post(weight, output_gram, 4, 400, generator)
    bound = float(plain("output", weight, data @ data.T).error_R[4])
    assert relative_error(weight, up @ down, data @ data.T) == pytest.approx(bound, rel=0.02)


@given(shapes, seeds)
def test_input_pca_reports_the_error_it_makes(shape, seed):
    weight, data, _ = problem(shape, seed)
    gram = data @ data.T
    factors = input_pca(weight, gram, CUT)
    rank = max(min(shape) // 2, 1)
    approximate = factors.up_RO[:rank].T @ factors.down_RI[:rank]
    assert float(factors.error_R[rank]) == pytest.approx(relative_error(weight, approximate, gram), abs=1e-8)


@given(seeds)
def test_a_singular_gram_is_cut_and_its_rank_recorded(seed):
    weight, data, _ = problem((8, 10), seed, tokens=4)
    factors = project_input_side(weight, data @ data.T, weight.T @ weight, CUT)
    assert factors.found_rank == 4
    assert relative_error(weight, factors.up_RO[:4].T @ factors.down_RI[:4], data @ data.T) < 1e-8


def test_a_gram_that_is_not_finite_or_zero_is_refused():
    with pytest.raises(CalibrationError, match="not finite"):
        roots(torch.full((2, 2), float("nan"), dtype=torch.float64), CUT)
    with pytest.raises(CalibrationError, match="zero"):
        roots(torch.zeros(2, 2, dtype=torch.float64), CUT)
