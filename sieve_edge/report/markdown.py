"""The report of a build as one short page of Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sieve_edge.files import disk_errors

PAGE = "report.md"
_TIMES = (
    ("time per answer, ms", "time_per_answer_ms"),
    ("time to first token, ms", "time_to_first_token_ms"),
    ("time per token p50, ms", "time_per_token_p50_ms"),
    ("time per token p95, ms", "time_per_token_p95_ms"),
)
_OUTCOMES = {True: "yes", False: "**no**", None: "**not verified**"}
_SPEEDS = (("decode, tokens/s", "tokens_per_s"), ("prompt, tokens/s", "prompt_tokens_per_s"))


def write_report(result: Mapping[str, Any], out: Path) -> Path:
    """Write the page.

    Args:
        result: Figures of ``validate``, with what the pipeline adds: ``seconds`` by stage, ``fallbacks`` and
            ``command``; a section whose figures are not there is left out.
        out: Folder of the page.

    Returns:
        The page, ``report.md``.
    """
    sections = [
        _verdict(result),
        _quality(result),
        _tuning(result.get("tune"), result["loss"].get("against_dense_tuned")),
        _speed(result),
        _footprint(result),
        _device(result),
        _seconds(result.get("seconds", {})),
        _bullets("Fallbacks", result.get("fallbacks", ())),
        _bullets("Reproduce", [f"`{result['command']}`"] if "command" in result else ()),
    ]
    page = out / PAGE
    with disk_errors(page):
        page.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")
    return page


def _verdict(result: Mapping[str, Any]) -> str:
    kept = result["kept_fraction"]
    rows = [
        (
            check["name"],
            _number(check["measured"]),
            _number(check["limit"]),
            check["unit"],
            _OUTCOMES[check["passed"]],
        )
        for check in result["checks"]
    ]
    missed, unknown = (
        ", ".join(check["name"] for check in result["checks"] if check["passed"] is passed) for passed in (False, None)
    )
    verdict = f"**Missed: {missed}.**" if missed else "**Passed.**"
    if unknown:
        verdict += f" **Not verified, since the device was not at hand: {unknown}.**"
    return (
        f"# {result['task']} on {result['target']}\n\n{verdict} "
        f"Kept {kept['linears']:.1%} of the linears' parameters, {kept['model']:.1%} of the model's.\n\n"
        + _table(("check", "measured", "limit", "unit", "passed"), rows)
    )


def _quality(result: Mapping[str, Any]) -> str:
    accuracy, loss = result["accuracy"], result["loss"]
    examples = result["workload"]["examples"]
    rows = [
        (f"{name}, {split}", f"{of['raw']:.3f}", f"{of['corrected']:.3f}", _interval(of["interval95"]), examples[split])
        for split in ("test", "transfer")
        for name, of in (("dense", accuracy["dense"][split]), ("pruned", accuracy["pruned"][split]))
    ]
    losses = [
        ("selection", f"{loss['selection']:.2%}", "-"),
        ("test", f"{loss['test']:.2%}", _interval(loss["interval95"], "%")),
        ("transfer", f"{loss['transfer']:.2%}", _interval(loss["transfer_interval95"], "%")),
    ]
    return (
        f"## Accuracy\n\nMetric: {result['metric'].replace('_', ' ')}; corrected adds the prior that the artifact "
        f"ships, for labels. {accuracy['baseline']['is'].capitalize()} scores {accuracy['baseline']['score']:.3f}.\n\n"
        + _table(("model, split", "raw", "corrected", "95 % interval", "examples"), rows)
        + "\n\nRelative loss, 1 - pruned / dense, corrected. The search saw the selection split only.\n\n"
        + _table(("split", "loss", "95 % interval, paired"), losses)
        + _judging(result)
    )


def _judging(result: Mapping[str, Any]) -> str:
    """Say how far the judge can be trusted, where there was one."""
    if "judge_agreement" not in result:
        return ""
    agreed, splits = result["judge_agreement"], ("test", "transfer")
    silent = sum(
        of[split]["unjudged"] for name in ("dense", "pruned") for of in (result["accuracy"][name],) for split in splits
    )
    return (
        f"\n\nThe judge agrees with exact match on {agreed['agreement']:.1%} of the pruned model's test answers, of "
        f"which {agreed['exact_match']:.1%} match exactly. Answers without a verdict, counted in no score: {silent}."
    )


def _tuning(tune: Mapping[str, Any] | None, against: Mapping[str, float] | None) -> str:
    if tune is None:
        return ""
    rows = [
        (name.replace("_", " "), *(f"{scores[split]:.3f}" for split in ("selection", "test", "transfer")))
        for name, scores in tune["scores"].items()
    ]
    told = f"## Tuning\n\n{tune['method']}, loss {tune['loss']}; the {tune['kept']} factors were exported. "
    told += "Scores by the task's metric, of labels corrected, in PyTorch.\n\n"
    told += _table(("model", "selection", "test", "transfer"), rows)
    if against is not None:
        told += f"\n\nLoss against the dense model tuned on the answers in the same way: test {against['test']:.2%}, "
        told += f"transfer {against['transfer']:.2%}."
    if not tune["transfer_holds"]:
        warning = f"Tuning loses {tune['transfer_lost']:.2%} on the transfer set, more than the tolerance."
        told += f'\n\n<span style="color: red">**{warning}**</span>'
    return told


def _speed(result: Mapping[str, Any]) -> str:
    work, dense, pruned = result["workload"], result["timing"]["dense"], result["timing"]["pruned"]
    rows = [(title, dense[key], pruned[key], dense[key] / pruned[key]) for title, key in _TIMES]
    rows += [(title, dense[key], pruned[key], pruned[key] / dense[key]) for title, key in _SPEEDS]
    table = [(title, f"{was:.2f}", f"{now:.2f}", f"{gain:.2f}") for title, was, now, gain in rows]
    return (
        f"## Time\n\n{work['prompt_tokens']} prompt tokens, {work['answer_tokens']} answer tokens, "
        f"{work['decode_tokens']} decoded, {work['repeats']} interleaved repeats, {work['threads']} threads, "
        f"{', '.join(result['device']['providers'])}. Answers come {pruned['speed_ratio']:.2f} times as fast, paired "
        f"by repeat, 95 % interval {_interval(pruned['speed_ratio_interval95'])}.\n\n"
        + _table(("", "dense", "pruned", "times as fast"), table)
    )


def _footprint(result: Mapping[str, Any]) -> str:
    size, peak, base = result["size_mib"], result["peak_memory_mib"], result["baseline_memory_mib"]
    rows = [
        ("graph and weights", f"{size['dense']:.1f}", f"{size['pruned']:.1f}"),
        ("peak memory, one answer", f"{peak['dense']:.1f}", f"{peak['pruned']:.1f}"),
        ("of it before loading", f"{base['dense']:.1f}", f"{base['pruned']:.1f}"),
    ]
    return (
        "## Size and memory\n\n"
        + _table(("MiB", "dense", "pruned"), rows)
        + f"\n\nSource weights: {size['source']:.1f} MiB. Largest difference from the reference logits: "
        f"{result['max_logit_difference']:.1e}, KL {result['drift']['kl']:.1e} nats, "
        f"same most likely token {result['drift']['top1']:.0%}."
    )


def _device(result: Mapping[str, Any]) -> str:
    before, after = result["device"]["before"], result["device"]["after"]
    shown = ("governors", "clock_mhz", "max_clock_mhz", "temperature_c", "throttled", "available_memory_mib")
    rows = [(name.replace("_", " "), _plain(before[name]), _plain(after[name])) for name in shown]
    where = "the device itself" if result["validated_on"] == "device" else "this host, in place of the device"
    return (
        f"## Device\n\nMeasured on {where}: {before['model']}, {before['processor']}, {before['cores']} cores, "
        f"{before['memory_mib']} MiB, {before['system']}, Python {before['python']}.\n\n"
        + _table(("", "before", "after"), rows)
    )


def _plain(value: Any) -> str:
    """Show a fact of a device; what it does not tell is a dash."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {item}" for name, item in value.items()) or "-"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _seconds(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    rows = [(stage, f"{spent:.1f}") for stage, spent in seconds.items()]
    return "## Where the time went\n\n" + _table(("stage", "seconds"), [*rows, ("sum", f"{sum(seconds.values()):.1f}")])


def _bullets(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}\n", *(f"- {line}" for line in lines)]) if lines else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _interval(bounds: Sequence[float], unit: str = "") -> str:
    low, high = bounds
    return f"{low:.2%} to {high:.2%}" if unit == "%" else f"{low:.3f} to {high:.3f}"


def _number(value: float) -> str:
    return f"{value:.4g}"
