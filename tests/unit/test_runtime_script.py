"""``scripts/runtime.sh`` builds once, even for two at a time, and refuses a source that its patches do not fit."""

import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PATCHES = CHECKOUT / "docker" / "llama.cpp"
TOOLS = (
    *("bash", "cat", "chmod", "cp", "cut", "dirname", "git", "grep", "gzip", "mkdir", "mktemp", "mv", "nproc", "rm"),
    *("sha256sum", "sleep", "tar", "touch", "uname"),
)
COMPILERS = ("cmake", "gcc", "g++")
WHEEL = "llama_cpp_python-0.0-py3-none-any.whl"
# Hands out the source and a wheel, the wheel after a while, and writes down how often it compiled.
PYTHON = f"""#!/usr/bin/env bash
case "$3" in
    download) mkdir -p "${{@: -1}}"; cp "$SDIST" "${{@: -1}}" ;;
    wheel) sleep 0.5; echo compiled >>"$LOG"; touch "$7/{WHEEL}" ;;
esac
"""


def write_before(patch: Path, folder: Path) -> None:
    """Write files that a patch fits: what it expects where it expects it, and blank lines between."""
    lines: list[str] = []
    file = folder
    for line in patch.read_text(encoding="utf-8").splitlines():
        if line.startswith("--- a/"):
            file, lines = folder / line.removeprefix("--- a/"), []
        elif (hunk := re.match(r"@@ -(\d+)", line)) is not None:
            lines += [""] * (int(hunk[1]) - 1 - len(lines))
        elif line.startswith((" ", "-")) and not line.startswith("---"):
            lines.append(line[1:])
        else:
            continue
        if lines:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join([*lines, ""]), encoding="utf-8")


class Machine:
    """A checkout with the script, and a PATH that holds nothing but what it needs."""

    def __init__(self, root: Path) -> None:
        self.checkout, self.bin, self.log = root / "checkout", root / "bin", root / "log"
        shutil.copytree(PATCHES, self.checkout / "docker" / "llama.cpp")
        (self.checkout / "scripts").mkdir()
        shutil.copy(CHECKOUT / "scripts/runtime.sh", self.checkout / "scripts")
        shutil.copy(CHECKOUT / "constraints.txt", self.checkout)
        self.source = root / "llama_cpp_python-0.0"
        write_before(PATCHES / "sdist.patch", self.source)
        write_before(PATCHES / "factored-weights.patch", self.llama)
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.write(root / "python", PYTHON)
        sdist = root / "llama_cpp_python-0.0.tar.gz"
        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(root),
            "PYTHON": str(root / "python"),
            "SDIST": str(sdist),
            "LOG": str(self.log),
            "GIT_CEILING_DIRECTORIES": str(root),
        }
        self.cache = root / ".cache" / "sieve-edge" / "runtime"
        self.sdist = sdist

    @property
    def llama(self) -> Path:
        return self.source / "vendor" / "llama.cpp"

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def install_compilers(self) -> None:
        for tool in COMPILERS:
            self.write(self.bin / tool, "#!/usr/bin/env bash\n")

    def pack(self) -> None:
        (self.source / "llama_cpp").mkdir(exist_ok=True)
        with tarfile.open(self.sdist, "w:gz") as archive:
            archive.add(self.source, self.source.name)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(words, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def build(self) -> "subprocess.Popen[str]":
        return self.start(str(self.checkout / "scripts" / "runtime.sh"))

    def call(self, words: str) -> "subprocess.CompletedProcess[str]":
        """Run one of the script's functions."""
        script = f'source "{self.checkout}/scripts/runtime.sh"; {words}'
        return subprocess.run(
            [str(self.bin / "bash"), "-c", script], env=self.environment, capture_output=True, text=True, check=False
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_two_at_a_time_end_in_one_wheel(machine: Machine) -> None:
    machine.install_compilers()
    machine.pack()
    both = [machine.build(), machine.build()]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    folder = machine.cache / machine.call("key").stdout.strip()
    assert [out for out, _ in told] == [f"{folder}/{WHEEL}\n"] * 2
    assert list(machine.cache.iterdir()) == [folder]
    assert [file.name for file in folder.iterdir()] == [WHEEL]
    assert folder.stat().st_mode & 0o777 == 0o755
    compiled = machine.log.read_text(encoding="utf-8")
    assert machine.build().wait() == 0
    assert machine.log.read_text(encoding="utf-8") == compiled


def test_compilers_are_asked_for_only_where_something_is_compiled(machine: Machine) -> None:
    machine.pack()
    process = machine.build()
    told = process.communicate()[1]
    assert (process.returncode, told) == (
        5,
        "runtime: cmake is missing; on Debian: apt-get install cmake gcc g++ git\n",
    )
    folder = machine.cache / machine.call("key").stdout.strip()
    folder.mkdir(parents=True)
    (folder / WHEEL).touch()
    process = machine.build()
    assert process.communicate() == (f"{folder}/{WHEEL}\n", "")
    assert process.returncode == 0


def test_another_source_is_refused_and_left_as_it_is(machine: Machine) -> None:
    words = f'apply factored-weights.patch "{machine.llama}"'
    file = machine.llama / "src" / "llama-model.cpp"
    fits = file.read_text(encoding="utf-8")
    line = "const buft_list_t * buft_list_layer = tn.bid == -1 ? nullptr : "
    assert fits.count(line) == 1
    file.write_text(fits.replace(line, line.replace("-1", "-2")), encoding="utf-8")
    before = {path: path.read_bytes() for path in machine.llama.rglob("*") if path.is_file()}
    done = machine.call(words)
    assert done.returncode == 5
    assert "runtime: factored-weights.patch does not fit this source; it is made for llama-cpp-python==" in done.stderr
    assert {path: path.read_bytes() for path in machine.llama.rglob("*") if path.is_file()} == before
    file.write_text(fits, encoding="utf-8")
    assert machine.call(words).returncode == 0, "as it was, the patch fits"
    assert "fac_b.weight" in file.read_text(encoding="utf-8")


def test_a_build_from_another_source_leaves_nothing(machine: Machine) -> None:
    machine.install_compilers()
    file = machine.llama / "src" / "llama-model.h"
    file.write_text(file.read_text(encoding="utf-8").replace("struct llama_model {", "struct other {"))
    machine.pack()
    process = machine.build()
    told = process.communicate()
    assert process.returncode == 5, told
    assert not machine.log.exists()
    assert list(machine.cache.iterdir()) == []
