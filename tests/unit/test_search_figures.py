"""The front of what was scored, and figures of few or odd scores."""

from sieve_edge.report.search_figures import divergence_figure, front_figure, front_of, progress_figure
from tests.markup import read_page
from tests.unit.test_kept import make_plan


def score(kept, accuracy, feasible=True, complete=True, collapsed=False):
    return {
        "plan": f"{kept}",
        "rung": "refit",
        "kept_linears": kept,
        "complete": complete,
        "accuracy": accuracy,
        "loss": 0.0,
        "loss_bound": 0.0,
        "feasible": feasible,
        "collapsed": collapsed,
    }


def test_the_front_holds_what_no_other_plan_beats():
    scored = [
        score(0.5, 0.8),
        score(0.4, 0.85),
        score(0.4, 0.7),
        score(0.9, 0.9),
        score(0.2, 0.99, complete=False),
        score(0.1, 0.5, collapsed=True),
        score(0.3, 0.6),
    ]
    assert [item["kept_linears"] for item in front_of(scored)] == [0.3, 0.4, 0.9]


def test_figures_of_one_score_are_drawn():
    for drawing in (
        front_figure("one", [score(0.5, 0.9)], make_plan({}), 0.05),
        progress_figure("two", [score(0.5, 0.9, feasible=False)]),
        divergence_figure("three", [{"plan": "id", "kept_linears": 0.5, "divergence": 0.0}], make_plan({})),
    ):
        page = read_page(drawing)
        assert page.problems == []
        assert "nan" not in str(drawing)


def test_progress_falls_with_plans_within_the_tolerance_only():
    scored = [score(0.9, 0.9), score(0.3, 0.5, feasible=False), score(0.6, 0.9), score(0.7, 0.9)]
    told = read_page(progress_figure("progress", scored)).by_id("progress-desc").text
    assert told == "Kept of the linears' parameters, falling: 90.0%, 60.0%."
