"""A machine for ``scripts/engine.sh``: a checkout, and stand-ins for docker, podman, and what the script calls."""

import shutil
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
TOOLS = (
    *(
        "awk",
        "bash",
        "cut",
        "dirname",
        "env",
        "find",
        "grep",
        "id",
        "mkdir",
        "realpath",
        "sha256sum",
        "sort",
        "timeout",
    ),
    *("touch", "uname", "xargs"),
)
SCRIPT = "#!/usr/bin/env bash\n"
# Answers like an engine whose image carries the labels $LABEL, writes down what it is asked to run, and ends like that.
ENGINE = f"""{SCRIPT}
case "$1 $2" in
    "info ") [[ -z $DEAF ]] || {{ echo "first line" >&2; echo "no daemon" >&2; exit 1; }} ;;
    "image inspect") [[ -n $LABEL ]] || exit 1; echo "$LABEL" ;;
    "build "*) echo "$0 $*" >>"$LOG" ;;
    "run "*)
        [[ -z $LAME ]] || {{ echo "crun: unknown cgroups" >&2; exit 126; }}
        echo "${{0##*/}} $*" >>"$LOG"
        [[ $* != *" build "* ]] || exit "$ENDS"
        ;;
esac
"""


class Machine:
    """A checkout with the script, and a PATH that holds nothing but what it needs and the engines of a test."""

    def __init__(self, root: Path) -> None:
        self.checkout, self.bin, self.log = root / "checkout", root / "bin", root / "log"
        for folder in ("scripts", "docker/llama.cpp", "sieve_edge", "targets", ".venv/bin"):
            (self.checkout / folder).mkdir(parents=True)
        for name in ("constraints.txt", "pyproject.toml", "demo-requirements.txt"):
            shutil.copy(CHECKOUT / name, self.checkout)
        for pattern in ("docker/*.Dockerfile", "scripts/engine.sh", "scripts/target.sh", "targets/*.yaml"):
            for file in CHECKOUT.glob(pattern):
                shutil.copy(file, self.checkout / file.relative_to(CHECKOUT).parent, follow_symlinks=False)
        self.write(
            self.checkout / "scripts/setup.sh", f'{SCRIPT}echo "setup $*${{ACCELERATOR:+ for $ACCELERATOR}}" >>"$LOG"\n'
        )
        self.write(
            self.checkout / ".venv/bin/sieve-edge", f'{SCRIPT}echo "local $*" >>"$LOG"; exit "${{LOCAL_ENDS:-$ENDS}}"\n'
        )
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.environment = {"PATH": str(self.bin), "HOME": str(root), "LOG": str(self.log), "ENDS": "4"}

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def install(self, *engines: str) -> None:
        for name in engines:
            self.write(self.bin / name, ENGINE)

    def label(self, **more: str) -> str:
        """Labels that the pipeline's image of these sources carries, as ``image`` gives them."""
        self.run("image", "build", BUILDER=str(self.bin / "docker") + " build", **more)
        told = self.log.read_text(encoding="utf-8")
        self.log.unlink()
        return " ".join(told.partition(f"sieve-edge.{name}=")[2].split()[0] for name in ("sources", "runtimes"))

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / "scripts/engine.sh", *words],
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )

    def build(
        self, target: str = "x86-cpu", options: tuple[str, ...] = ("--set", "tolerance=0.02"), **more: str
    ) -> tuple[int, str, list[str]]:
        """Exit code, standard error and what was run."""
        done = self.run("build", target, *options, **more)
        ran = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return done.returncode, done.stderr, ran
