"""Why llama.cpp cannot load a GGUF file: a format of factored weights that is too new, or a missing patch."""

from pathlib import Path
from typing import NoReturn

from sieve_edge.errors import ArtifactError, EnvironmentMissing
from sieve_edge.model.gguf_header import FORMAT_KEY, FORMAT_VERSION

PATCHED = "+factored"
"""Part of the version of a llama-cpp-python that was built with docker/llama.cpp/factored-weights.patch."""

_FACTORED = b".fac_b.weight"
_HEADER_BYTES = 2**26


def check_format(file: Path, version: int) -> None:
    """Refuse factored weights of a format that came after this package.

    Args:
        file: GGUF file.
        version: What it says of its format.

    Raises:
        ArtifactError: If it is newer than the one known here.
    """
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{file}: {FORMAT_KEY} is {version}, known is {FORMAT_VERSION}; install a newer sieve-edge, or export again"
        )


def refuse(file: Path, said: str, version: str) -> NoReturn:
    """Say why a file cannot be loaded.

    Args:
        file: GGUF file.
        said: What llama.cpp said.
        version: Version of llama-cpp-python.

    Raises:
        EnvironmentMissing: If it takes the patch, which is not there.
        ArtifactError: For any other reason.
    """
    with file.open("rb") as opened:
        header = opened.read(_HEADER_BYTES)
    # A newer format may be why it cannot be loaded. The number stands behind the key and the number's type.
    _, key, rest = header.partition(FORMAT_KEY.encode())
    if key:
        check_format(file, int.from_bytes(rest[4:8], "little"))
    if _FACTORED in header and PATCHED not in version:
        raise EnvironmentMissing(
            f"{file}: holds factored matrices, which llama.cpp of llama-cpp-python {version} does not know; install "
            "the build with docker/llama.cpp/factored-weights.patch: make runtime"
        )
    raise ArtifactError(f"{file}: llama.cpp cannot load it ({said})")
