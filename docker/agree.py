"""Says for docker/prove.sh whether what an image found is what it must be; needs nothing but Python.

agree.py limits CODE OUTPUT   exit code and last line of a build or a validation: no limit is missed but ``faster``
agree.py scores RUN OTHER     two runs' validations of one artifact have the same test accuracy
agree.py logits FILE          what the reference job said: the logits are those that the export stored
"""

import json
import sys
from pathlib import Path
from typing import Any

MISSED = 4
FASTER = "faster"
"""The one check that may fail: a pico model's time is that of its interpreter's overhead, not of its matrices."""

MAX_ACCURACY_DIFFERENCE = 0.01
"""Two of the pico task's 200 test examples: near ties may fall otherwise on another processor."""

MAX_LOGIT_DIFFERENCE = 5e-3
"""As ``validate`` has it for float32."""


def main() -> None:
    """Check what the command line names, and end with one line and exit code 1 where it is not so."""
    what, *arguments = sys.argv[1:]
    problem = {"limits": limits, "scores": scores, "logits": logits}[what](*arguments)
    if problem:
        sys.exit(f"agree: {' '.join(arguments)}: {problem}")


def limits(code: str, output: str) -> str:
    """Find what is wrong with how a build or a validation ended.

    Args:
        code: Its exit code.
        output: File with its standard output.

    Returns:
        The problem; empty if there is none.
    """
    if int(code) not in (0, MISSED):
        return f"exit {code}, must be 0 or {MISSED}"
    lines = Path(output).read_text(encoding="utf-8").splitlines()
    missed = [check["name"] for check in json.loads(lines[-1])["checks"] if check["passed"] is False]
    if missed not in ([], [FASTER]):
        return f"missed {', '.join(missed)}, only {FASTER} may be missed"
    if (int(code) == MISSED) != bool(missed):
        return f"exit {code}, but missed {', '.join(missed) or 'nothing'}"
    return ""


def scores(run: str, other: str) -> str:
    """Find whether two validations disagree.

    Args:
        run: Run's folder.
        other: Another run's, with the same artifact.

    Returns:
        The problem; empty if there is none.
    """
    mine, theirs = (_test_accuracy(Path(folder)) for folder in (run, other))
    if abs(mine - theirs) <= MAX_ACCURACY_DIFFERENCE:
        return ""
    return f"test accuracies {mine:.4f} and {theirs:.4f}, must differ by {MAX_ACCURACY_DIFFERENCE} at most"


def logits(file: str) -> str:
    """Find whether logits are too far from the stored ones.

    Args:
        file: What the reference job said.

    Returns:
        The problem; empty if there is none.
    """
    found = _read(Path(file))["max_difference"]
    # Not a number is no agreement either.
    if found <= MAX_LOGIT_DIFFERENCE:
        return ""
    return f"logits differ by {found} from the stored ones, must be {MAX_LOGIT_DIFFERENCE} at most"


def _test_accuracy(run: Path) -> float:
    return float(_read(run / "validate" / "report.json")["accuracy"]["pruned"]["test"]["corrected"])


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
