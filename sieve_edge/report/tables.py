"""What a report says of a build, as sentences and tables; every page, the terminal and the model card show the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sieve_edge import STAGES
from sieve_edge.device.checks import check_name

Result = Mapping[str, Any]
"""What a build ended with: ``result.json``."""

SPLITS = ("test", "transfer")
MODELS = ("dense", "pruned")
_TIMES = (
    ("time per answer, ms", "time_per_answer_ms"),
    ("time to first token, ms", "time_to_first_token_ms"),
    ("time per token p50, ms", "time_per_token_p50_ms"),
    ("time per token p95, ms", "time_per_token_p95_ms"),
)
OUTCOMES = {True: "yes", False: "no", None: "not verified"}
_SPEEDS = (("decode, tokens/s", "tokens_per_s"), ("prompt, tokens/s", "prompt_tokens_per_s"))


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        head: Title of each column.
        rows: Cells.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def verdict(result: Result) -> str:
    """Say whether every limit was met.

    Args:
        result: Result of a build.

    Returns:
        One sentence, and another where something was not verified.
    """
    missed, unknown = (
        ", ".join(check_name(check) for check in result["checks"] if check["passed"] is passed)
        for passed in (False, None)
    )
    told = f"Missed: {missed}." if missed else "Passed."
    return f"{told} Not verified, since the device was not at hand: {unknown}." if unknown else told


def kept(result: Result) -> str:
    """Say what was kept.

    Args:
        result: Result of a build.

    Returns:
        One sentence.
    """
    fraction = result["kept_fraction"]
    return f"Kept {fraction['linears']:.1%} of the linears' parameters, {fraction['model']:.1%} of the model's."


def checks(result: Result) -> Table:
    """List the limits and what was measured.

    Args:
        result: Result of a build.

    Returns:
        One row for each check; the last cell is one of ``OUTCOMES``.
    """
    rows = [
        (
            check_name(check),
            number(check["measured"]),
            number(check["limit"]),
            check["unit"],
            OUTCOMES[check["passed"]],
        )
        for check in result["checks"]
    ]
    return Table(("check", "measured", "limit", "unit", "passed"), rows)


def metric(result: Result) -> str:
    """Say what the scores are.

    Args:
        result: Result of a build.

    Returns:
        Two sentences.
    """
    baseline = result["accuracy"]["baseline"]
    return (
        f"Metric: {result['metric'].replace('_', ' ')}; corrected adds the prior that the artifact ships, for labels. "
        f"{baseline['is'].capitalize()} scores {baseline['score']:.3f}."
    )


def scores(result: Result) -> Table:
    """List the scores of both models.

    Args:
        result: Result of a build.

    Returns:
        One row for each model and split.
    """
    accuracy, examples = result["accuracy"], result["workload"]["examples"]
    rows = []
    for split in SPLITS:
        for name in MODELS:
            of = accuracy[name][split]
            figures = (f"{of['raw']:.3f}", f"{of['corrected']:.3f}", interval(of["interval95"]))
            rows.append((f"{name}, {split}", *figures, str(examples[split])))
    return Table(("model, split", "raw", "corrected", "95 % interval", "examples"), rows)


LOSSES = "Relative loss, 1 - pruned / dense, corrected. The search saw the selection split only."


def losses(result: Result) -> Table:
    """List the relative losses.

    Args:
        result: Result of a build.

    Returns:
        One row for each split.
    """
    loss = result["loss"]
    rows = [
        ("selection", f"{loss['selection']:.2%}", "-"),
        ("test", f"{loss['test']:.2%}", interval(loss["interval95"], "%")),
        ("transfer", f"{loss['transfer']:.2%}", interval(loss["transfer_interval95"], "%")),
    ]
    return Table(("split", "loss", "95 % interval, paired"), rows)


def judging(result: Result) -> str:
    """Say how far the judge can be trusted, where there was one.

    Args:
        result: Result of a build.

    Returns:
        Two sentences, or an empty text.
    """
    if "judge_agreement" not in result:
        return ""
    agreed = result["judge_agreement"]
    silent = sum(result["accuracy"][name][split]["unjudged"] for name in MODELS for split in SPLITS)
    return (
        f"The judge agrees with exact match on {agreed['agreement']:.1%} of the pruned model's test answers, of "
        f"which {agreed['exact_match']:.1%} match exactly. Test and transfer answers of both models without a verdict, "
        f"counted in no score: {silent}."
    )


def verdicts(result: Result) -> Table | None:
    """List what every stage asked a judge, and how often it gave no verdict.

    Args:
        result: Result of a build.

    Returns:
        One row for each stage that asked; None without a judge. Each answer counts once in a stage.
    """
    if "judge" not in result:
        return None
    names = ("asked", "on_disk", "refused", "unparsable", "cut_off")
    rows = [(verb, *(str(told.get(name, "-")) for name in names)) for verb, told in result["judge"].items()]
    return Table(("stage", "asked", "known before", "refused", "unparsable", "of these cut off"), rows)


def workload(result: Result) -> str:
    """Say what was timed, and how much faster it is.

    Args:
        result: Result of a build.

    Returns:
        Two sentences.
    """
    work, pruned = result["workload"], result["timing"]["pruned"]
    providers = ", ".join(result["device"]["providers"]) if "device" in result else "not recorded"
    return (
        f"{work['prompt_tokens']} prompt tokens, {work['answer_tokens']} answer tokens, "
        f"{work['decode_tokens']} decoded, {work['repeats']} interleaved repeats, {work['threads']} threads, "
        f"providers: {providers}. Answers come {pruned['speed_ratio']:.2f} times as fast, paired "
        f"by repeat, 95 % interval {interval(pruned['speed_ratio_interval95'])}."
    )


def times(result: Result) -> Table:
    """List times and speeds.

    Args:
        result: Result of a build.

    Returns:
        One row for each figure, with how many times as fast the pruned model is.
    """
    dense, pruned = result["timing"]["dense"], result["timing"]["pruned"]
    rows = [(title, dense[key], pruned[key], dense[key] / pruned[key]) for title, key in _TIMES]
    rows += [(title, dense[key], pruned[key], pruned[key] / dense[key]) for title, key in _SPEEDS]
    cells = [(title, f"{was:.2f}", f"{now:.2f}", f"{gain:.2f}") for title, was, now, gain in rows]
    return Table(("", *MODELS, "times as fast"), cells)


def footprint(result: Result) -> Table:
    """List sizes and memory.

    Args:
        result: Result of a build.

    Returns:
        One row for each figure, in MiB.
    """
    told = (
        ("graph and weights", "size_mib"),
        ("peak memory, one answer", "peak_memory_mib"),
        ("of it before loading", "baseline_memory_mib"),
    )
    rows = [(title, *(f"{result[key][name]:.1f}" for name in MODELS)) for title, key in told]
    return Table(("MiB", *MODELS), rows)


def fidelity(result: Result) -> str:
    """Say how large the source was, and how near the artifact is to the model that was exported.

    Args:
        result: Result of a build.

    Returns:
        Two sentences.
    """
    return (
        f"Source weights: {result['size_mib']['source']:.1f} MiB. Largest difference from the reference logits: "
        f"{result['max_logit_difference']:.1e}, KL {result['drift']['kl']:.1e} nats, "
        f"same most likely token {result['drift']['top1']:.0%}."
    )


def seconds(spent: Mapping[str, float]) -> Table:
    """List what each stage took.

    Args:
        spent: Stage -> seconds.

    Returns:
        One row for each stage in their order, and the sum.
    """
    verbs = [stage.verb for stage in STAGES if stage.verb in spent]
    rows = [(verb, f"{spent[verb]:.1f}") for verb in verbs]
    return Table(("stage", "seconds"), [*rows, ("sum", f"{sum(spent.values()):.1f}")])


def interval(bounds: Sequence[float], unit: str = "") -> str:
    """Write an interval.

    Args:
        bounds: Its ends.
        unit: ``"%"`` for fractions that are shown in per cent.

    Returns:
        The text.
    """
    low, high = bounds
    return f"{low:.2%} to {high:.2%}" if unit == "%" else f"{low:.3f} to {high:.3f}"


def number(value: float) -> str:
    """Write a number with four digits.

    Args:
        value: The number.

    Returns:
        The text.
    """
    return f"{value:.4g}"
