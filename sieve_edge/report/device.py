"""What a report says of the machine that was measured on."""

from collections.abc import Mapping, Sequence
from typing import Any

from sieve_edge.report.tables import Result, Table

SHOWN = ("governors", "clock_mhz", "max_clock_mhz", "temperature_c", "throttled", "available_memory_mib")


def told(result: Result) -> str:
    """Say where was measured.

    Args:
        result: Result of a build.

    Returns:
        One sentence.
    """
    if "device" not in result:
        return "This build is of a version that did not record the machine."
    before = result["device"]["before"]
    where = "the device itself" if result["validated_on"] == "device" else "this host, in place of the device"
    return (
        f"Measured on {where}: {before['model']}, {before['processor']}, {before['cores']} cores, "
        f"{before['memory_mib']} MiB, {before['system']}, Python {before['python']}."
    )


def states(result: Result) -> Table:
    """List how the machine was, before and after.

    Args:
        result: Result of a build.

    Returns:
        One row for each fact; what the machine does not tell is a dash.
    """
    before, after = result["device"]["before"], result["device"]["after"]
    rows = [(name.replace("_", " "), _plain(before[name]), _plain(after[name])) for name in SHOWN]
    return Table(("", "before", "after"), rows)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {item}" for name, item in value.items()) or "-"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
