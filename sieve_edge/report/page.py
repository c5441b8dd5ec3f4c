"""The page of one build: one HTML file that needs no network, and the environment of all templates."""

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sieve_edge import __version__
from sieve_edge.device.inspect import inspect_path
from sieve_edge.files import disk_errors
from sieve_edge.report import device, figures, plan_figures, search_figures, tables, tuned
from sieve_edge.report.kept import KeptMatrix, kinds, read_kept
from sieve_edge.report.provenance import OFF, provenance, settings, stage_keys, versions
from sieve_edge.report.record import RunRecord
from sieve_edge.report.stages import steps, steps_table
from sieve_edge.report.tables import Result, Table

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "report.html"
SECTIONS = {
    "verdict": "Verdict and limits",
    "stages": "What each stage did",
    "accuracy": "Accuracy",
    "time": "Time",
    "size": "Size and memory",
    "kept": "What was kept",
    "search": "The search",
    "errors": "Error against rank",
    "differences": "Where the models differ",
    "run": "What was run",
}
_NOT_RECORDED = "This build did not record {what}; delete {folder} and run its command again to have it."
_PARTS = ("embedding", "attention", "mlp", "norms", "head", "other")
_TIMED = (
    ("answer_samples_ms", "Time per answer"),
    ("first_token_samples_ms", "Time to first token"),
    ("token_samples_ms", "Time per token"),
)


def write_page(text: str, page: Path) -> Path:
    """Write a page.

    Args:
        text: HTML.
        page: File to write.

    Returns:
        The file.
    """
    with disk_errors(page):
        page.write_text(text, encoding="utf-8")
    return page


def run_page(record: RunRecord) -> str:
    """Make the page of one build.

    Args:
        record: The build.

    Returns:
        HTML, self-contained.
    """
    result, matrices = record.result, read_kept(record.root / "learn", record.plan)
    done, sizes = steps(record), parts(record)
    marked = bottlenecks(record)
    shown = min((item for item in matrices if item.rank), key=lambda item: item.kept, default=matrices[0])
    samples = record.samples
    return render(
        "run.html.j2",
        record=record,
        sections=SECTIONS,
        summary=_summary(record),
        warnings=_warnings(record),
        steps=steps_table(done),
        off=_off(record),
        thinned=len(samples["dense"]["token_samples_ms"]) > figures.DOTS,
        figures={
            "steps": figures.steps_figure("steps", done),
            "accuracy": figures.accuracy_figure("scores", result),
            "loss": figures.loss_figure("losses", result, record.tolerance),
            "times": _times(record),
            "parts": figures.parts_figure("parts", sizes),
            "heat": plan_figures.heat_figure("heat", matrices, marked),
            "layers": plan_figures.layers_figure("layers", matrices),
            "kinds": plan_figures.kinds_figure("kinds", matrices),
            "error": plan_figures.error_figure("error", shown),
            **_search_figures(record),
        },
        tied="head" not in sizes["pruned"],
        bottlenecks_told=_bottlenecks_told(record, marked),
        ranks=ranks_table(matrices),
        no_scores=_NOT_RECORDED.format(what="what each scored plan was worth", folder=record.root / "search"),
        no_differences=_NOT_RECORDED.format(
            what="where the two models answer differently", folder=record.root / "validate"
        ),
        worth=_worth,
        metric=record.manifests["learn"].settings.get("output_metric"),
        matrices=matrices,
        shown=shown,
        error_told=plan_figures.error_told(shown),
        curves=Markup(json.dumps(plan_figures.curves(matrices)).replace("<", "\\u003c")),  # noqa: S704 (no tag can end)
        script=read_template("page.js"),
        provenance=provenance(record),
        versions=versions(record),
        stage_keys=stage_keys(record),
        settings=settings(record),
    )


def render(template: str, **values: Any) -> str:
    """Fill a template.

    Args:
        template: Its file.
        **values: What it shows.

    Returns:
        HTML.
    """
    shared = {
        "device": device,
        "tables": tables,
        "tuned": tuned,
        "checks": _checks,
        "version": __version__,
        "css": read_template("page.css"),
    }
    return _environment().get_template(template).render(**shared, **values)


def read_template(name: str) -> Markup:
    """Read a file that pages hold as it is.

    Args:
        name: Style sheet or script.

    Returns:
        Its text.
    """
    text = resources.files("sieve_edge.report").joinpath("templates", name).read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704 (our own files)


def bottlenecks(record: RunRecord) -> list[str]:
    """List the matrices that no good plan prunes.

    Args:
        record: The build.

    Returns:
        Their names, by layer.
    """
    always = [name for name, share in record.bottlenecks["dense_probability"].items() if share >= 1.0]
    return sorted(always, key=lambda name: (int(name.split(".")[0]), name))


def parts(record: RunRecord) -> dict[str, dict[str, float]]:
    """Read where the bytes of both exported folders are.

    Args:
        record: The build.

    Returns:
        Model -> part -> MiB, in the order in which a model runs them.
    """
    found = {name: inspect_path(record.root / "export" / name)["parts"] for name in tables.MODELS}
    return {name: {part: of[part] for part in _PARTS if part in of} for name, of in found.items()}


def ranks_table(matrices: Sequence[KeptMatrix]) -> Table:
    """List rank and kept fraction of every matrix.

    Args:
        matrices: Matrices.

    Returns:
        One row for each layer.
    """
    by_name = {item.name: item for item in matrices}
    rows = []
    for layer in sorted({item.layer for item in matrices}):
        of = [by_name.get(f"{layer}.{kind}") for kind in kinds(matrices)]
        rows.append((str(layer), *("-" if item is None else _rank(item) for item in of)))
    return Table(("layer", *kinds(matrices)), rows)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    return Environment(
        loader=PackageLoader("sieve_edge.report"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _checks(result: Result) -> Table:
    """List the checks, the verdict first: on a phone the last columns lie beyond the edge."""
    found = tables.checks(result)
    head, *rows = [(row[0], row[-1], *row[1:-1]) for row in (found.head, *found.rows)]
    return Table(head, rows)


def _summary(record: RunRecord) -> str:
    result: Result = record.result
    accuracy, size = result["accuracy"], result["size_mib"]
    return (
        f"On the test split {accuracy['pruned']['test']['corrected']:.3f} against the dense model's "
        f"{accuracy['dense']['test']['corrected']:.3f}: a relative loss of {result['loss']['test']:.2%}, of which "
        f"{record.tolerance:.1%} is allowed. Answers come {result['timing']['pruned']['speed_ratio']:.2f} times as "
        f"fast, from {size['pruned']:.0f} MiB in place of {size['dense']:.0f}."
    )


def _warnings(record: RunRecord) -> list[str]:
    result = record.result
    found = [tuned.warning(result["tune"])] if "tune" in result else []
    if result["loss"]["interval95"][1] > record.tolerance:
        found.append(
            f"The 95 % interval of the test loss reaches {result['loss']['interval95'][1]:.2%}, above the tolerance of "
            f"{record.tolerance:.1%}: another test split could be missed."
        )
    cut = {split: share for split, share in record.manifests["calibrate"].metrics.get("cut", {}).items() if share}
    if cut:
        told = ", ".join(f"{share:.0%} of {split}" for split, share in cut.items())
        found.append(f"Texts were cut to the task's max_words: {told}.")
    return [warning for warning in found if warning]


def _off(record: RunRecord) -> str:
    off = [verb for verb, told in OFF.items() if record.manifests[verb].metrics.get(told[0]) == told[1]]
    return f"Off in this build: {', '.join(off)}." if off else ""


def _times(record: RunRecord) -> list[tuple[str, Markup]]:
    found = []
    for field, title in _TIMED:
        samples = {name: record.samples[name][field] for name in tables.MODELS}
        # Where the prompt gives the whole answer, both are the same measurement.
        same = field == "first_token_samples_ms" and record.result["workload"]["answer_tokens"] == 1
        if not same and all(samples.values()):
            shown = figures.times_figure(field.removesuffix("_samples_ms").replace("_", "-"), title, samples)
            found.append((title, shown))
    return found


def _search_figures(record: RunRecord) -> dict[str, Markup | None]:
    scored, plan = record.scored, record.plan
    looked = record.divergences
    return {
        "front": search_figures.front_figure("front", scored, plan, record.search_tolerance) if scored else None,
        "progress": search_figures.progress_figure("progress", scored) if scored else None,
        "divergence": search_figures.divergence_figure("divergence", looked, plan) if looked else None,
    }


def _bottlenecks_told(record: RunRecord, marked: Sequence[str]) -> str:
    plans = record.bottlenecks["plans"]
    if not plans:
        return "No plan was scored to the end, so bottlenecks are not known."
    named = f"{len(marked)} bottlenecks: {', '.join(marked)}." if marked else "No bottleneck."
    return f"{named} Plans whose fitness is near the best, over which they are counted: {plans}."


def _rank(item: KeptMatrix) -> str:
    return "dense" if item.rank is None else f"{item.rank} of {item.most}: {item.kept:.0%}"


def _worth(worth: float | None) -> str:
    if worth is None:
        return "no verdict"
    return {0.0: "wrong", 1.0: "right"}.get(worth, f"worth {worth:.2f}")
