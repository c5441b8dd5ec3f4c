"""Compares the tensors that a file holds with those that it must hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sieve_edge.errors import ArtifactError


def check_stored(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a file that lacks a tensor, has one too many, or has one of another shape or type.

    Args:
        path: The file, for the message.
        stored: Name -> what was found of it.
        wanted: Name -> what must be found.

    Raises:
        ArtifactError: If they differ; the first problems are named.
    """
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [f"{name} is left over" for name in stored if name not in wanted]
    problems += [
        f"{name} is {stored[name]} instead of {wanted[name]}"
        for name in wanted
        if name in stored and stored[name] != wanted[name]
    ]
    if problems:
        raise ArtifactError(f"{path}: {len(problems)} weights are not accounted for: {'; '.join(problems[:5])}")
