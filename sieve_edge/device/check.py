"""Runs a bundle's sample on the device: ``python -m sieve_edge.device.check FOLDER``; what ``check.sh`` calls.

It replays a part of the test split and compares the answers with those that validation kept. Exit code 0 if they
agree, 4 if they drifted, and otherwise that of the error. The last line of standard output is one JSON document.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sieve_edge.device.runtimes import open_tokenizer
from sieve_edge.device.worker import do_job
from sieve_edge.errors import ArtifactError, LimitMissed, SieveError
from sieve_edge.files import file_sha256, read_json

ARTIFACT, BUNDLE, SAMPLE = "artifact", "bundle.json", "sample.json"
MIN_AGREEMENT = 0.95
"""Least fraction of the sample whose answer is the one that validation kept."""

TIE_NATS = 0.05
"""Labels whose corrected log-likelihoods were closer than this may swap places on another processor."""


def main() -> int:
    """Check the bundle in the folder that the command line names.

    Returns:
        Exit code.
    """
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    try:
        found = check(folder)
    except SieveError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def check(folder: Path) -> dict[str, Any]:
    """Verify the files of an unpacked bundle, and its answers to the sample.

    Args:
        folder: The bundle.

    Returns:
        JSON-compatible: ``examples``, ``agreement``, ``max_difference`` (nats; None where answers are written).

    Raises:
        ArtifactError: If a file is not what was bundled.
        LimitMissed: If too many answers changed.
    """
    bundle = read_json(folder / BUNDLE)
    for name, sha256 in bundle["sha256"].items():
        file = folder / name
        if not file.is_file() or file_sha256(file) != sha256:
            raise ArtifactError(f"{file}: missing, or not what was bundled; unpack the bundle again")
    sample = read_json(folder / SAMPLE)
    tokenizer = open_tokenizer(folder / ARTIFACT)
    encoded = [tokenizer.encode(text).ids for text in sample["texts"]]
    if encoded != sample["job"]["prompts"]:
        raise ArtifactError(f"{folder / ARTIFACT}: this device's tokenizers encodes the sample differently")
    job = {**bundle["runtime"], **sample["job"], "folder": str(folder / ARTIFACT)}
    found = compare(sample, do_job(json.dumps(job))["answers"])
    if found["agreement"] < MIN_AGREEMENT:
        raise LimitMissed(
            f"{bundle['target']}: {found['agreement']:.1%} of {found['examples']} answers are those that validation "
            f"kept, must be {MIN_AGREEMENT:.0%}"
        )
    return found


def compare(sample: Mapping[str, Any], answers: list[Any]) -> dict[str, Any]:
    """Compare answers with those that validation kept.

    Args:
        sample: What validation kept.
        answers: Answers to the same prompts.

    Returns:
        See ``check``.
    """
    expected = sample["answers"]
    if sample["job"]["job"] == "write":
        same = [mine == kept for mine, kept in zip(answers, expected, strict=True)]
        return {"examples": len(same), "agreement": float(np.mean(same)), "max_difference": None}
    bias_K = np.asarray(sample["prior"])
    mine_NK, kept_NK = np.asarray(answers) + bias_K, np.asarray(expected) + bias_K
    chosen_N = mine_NK.argmax(1)
    # What was as good as the best one is right too.
    behind_N = kept_NK.max(1) - kept_NK[np.arange(len(chosen_N)), chosen_N]
    difference = float(np.abs(mine_NK - kept_NK).max())
    return {"examples": len(expected), "agreement": float((behind_N <= TIE_NATS).mean()), "max_difference": difference}


if __name__ == "__main__":
    sys.exit(main())
