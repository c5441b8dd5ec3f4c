"""What a reader of the documentation types: the commands of its shell blocks, and the files that it says to write."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHELL, SCRIPT, FILES, SHOWN = "sh", "python", ("yaml", "json", "jsonl", "csv"), "text"
"""Words that a fence may have: commands, a script, files (with their name: ```yaml a.yaml), and what is only read."""

_PROGRAMS = (
    "make|sieve-edge|python3?|pip|podman|docker|buildah|ray|ssh|scp|curl|git|cd|tar|source|chmod|apt-get"
    r"|\./\S+|scripts/\S+|docker/\S+\.sh|\.venv/bin/\S+"
)
_COMMAND = re.compile(rf"^\s*(?:\$ |(?:[A-Z_]+=\S+ )*(?:sudo )?(?:{_PROGRAMS})(?: |$))")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")
_ASSIGNED = re.compile(r"^(?P<name>[A-Za-z_]\w*)=(?P<value>\S*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its file, the number of its first line, the words of its fence, and its lines."""

    file: str
    line: int
    info: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def language(self) -> str:
        return self.info[0] if self.info else ""


@dataclass(frozen=True)
class Command:
    """One command of a shell block, without its comment; continued lines are joined."""

    file: str
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def assigned(self) -> tuple[str, str] | None:
        """Name and value, where it only sets a shell variable."""
        found = _ASSIGNED.match(self.text)
        return (found["name"], found["value"]) if found else None


@dataclass(frozen=True)
class Example:
    """A file that the reader writes."""

    file: str
    line: int
    name: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


def documents(root: Path) -> list[Path]:
    """README.md first, since the others go on from what it builds, then they in the order in which it links to them."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    linked = list(dict.fromkeys(re.findall(r"\]\((docs/[\w/.-]+\.md)", readme)))
    others = sorted(str(path.relative_to(root)) for path in (root / "docs").rglob("*.md"))
    ordered = ["README.md", *(name for name in linked if name in others), *others]
    return [root / name for name in dict.fromkeys(ordered)]


def blocks(root: Path, path: Path) -> Iterator[Block]:
    """Find the fenced blocks of a document; one that is never closed is an error."""
    file, opened, lines, start = str(path.relative_to(root)), None, [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence:
                opened, lines, start = fence, [], number + 1
        elif fence and not fence["info"].strip():
            yield Block(file, start, tuple(opened["info"].split()), tuple(lines))
            opened = None
        else:
            lines.append(line.removeprefix(opened["indent"]))
    if opened is not None:
        raise ValueError(f"{file}:{start}: this block has no end")


def problems(block: Block) -> list[str]:
    """Say what is wrong with a block's fence: no known word, a file without a name, or commands that nobody runs."""
    place = f"{block.file}:{block.line}"
    known = (SHELL, SCRIPT, *FILES, SHOWN)
    if block.language not in known:
        return [f"{place}: fence '{block.language}', must be one of {', '.join(known)}"]
    # What the program prints of itself is not the documents' to run: its examples name files that nobody has.
    if block.language in (SHELL, SCRIPT) or block.info == (SHOWN, "help"):
        return []
    found = [
        f"{place}: `{line.strip()}` looks like a command; its block must be ```sh"
        for line in block.lines
        if _COMMAND.match(line)
    ]
    if block.language in FILES and len(block.info) != 2:
        found.append(f"{place}: a block of a file says which: ```{block.language} NAME")
    return found


def commands(block: Block) -> Iterator[Command]:
    """Split a shell block into its commands."""
    parts: list[str] = []
    for number, line in enumerate(block.lines, block.line):
        parts.append(_without_comment(line))
        if parts[-1].endswith("\\"):
            parts[-1] = parts[-1].removesuffix("\\").rstrip()
            continue
        text = " ".join(part for part in parts if part)
        first, parts = number - len(parts) + 1, []
        if text:
            yield Command(block.file, first, text)
    if parts:
        raise ValueError(f"{block.file}:{block.line}: the block ends in a continued line")


def steps(root: Path, path: Path) -> Iterator[Command | Example]:
    """List what a reader of a document does, in its order."""
    for block in blocks(root, path):
        if block.language == SHELL:
            yield from commands(block)
        elif block.language == SCRIPT:
            yield Command(block.file, block.line, f"python -c {shlex.quote(chr(10).join(block.lines))}")
        elif block.language in FILES:
            yield Example(block.file, block.line, block.info[1], "\n".join(block.lines) + "\n")


def _without_comment(line: str) -> str:
    """Cut a comment off: what begins with # outside quotes, at the start of a word."""
    for found in re.finditer(r"(?:^|\s)#", line):
        before = line[: found.start()]
        try:
            shlex.split(before)
        except ValueError:  # a quote is open
            continue
        return before.strip()
    return line.strip()
