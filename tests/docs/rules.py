"""How each documented command is run: as it stands, on a pico model, in short form, or not at all and why.

A command that no rule knows is an error.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SETTINGS = {"calibration_tokens": "1500", "threads": "1", "learn.fisher_prompts": "64"}
"""What a pico build needs in place of the recipe's own values; a command that sets one of them keeps its own."""

GENETIC = {"search.genetic.population": "10", "search.genetic.patience": "2", "search.part": "50"}
"""The same for the paper's genetic algorithm."""

PICO, QUICK, STOOD_IN = "pico", "--quick", "stands in"

_MADE = "long, and no part of a build; `make -n` says that the recipe is there"
NOT_RUN: Mapping[str, str] = {
    r"make (test|check|test-slow)(?![\w-])": "the whole test suite; `make -n` says that the recipe is there",
    r"make (bench|test-docs)\b": _MADE,
    r"make (test-containers|test-interop|test-vllm)\b": f"makes images or environments of its own: {_MADE}",
    r"make demo-qwen\b": f"fetches 478 MB: {_MADE}",
    r"make image\b": "makes images of gigabytes; make test-containers proves them, as root",
    r"python -m benchmarks\.(waterfall|tuning|rag)\b": "as long as builds even in short form; only its --help",
    r"ACCELERATOR=cuda .*make runtime": "needs an NVIDIA GPU and the CUDA toolkit",
    r"ssh ": "needs a device that is reached over ssh",
    r"scp ": "needs a device that is reached over ssh",
    r"ray start --address": "needs a second machine; the head has workers too",
}
"""All that may be left out, each with its reason."""


class Unknown(Exception):
    """No rule knows this command."""


@dataclass(frozen=True)
class Plan:
    """What is done in place of a command.

    ``kind`` is ``run``, ``build`` (validate too: a pico model may miss that it is faster), ``serve`` (goes on in the
    background), ``ask`` (asks what is served), ``ray stop``, or ``not run``.
    """

    kind: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Stage:
    """What rules need to know of where commands run: pico stand-ins for targets, tasks, and free ports."""

    target: Callable[[str], str]
    task: Callable[[str], str]
    model: str
    port: int
    ray: str
    ray_options: str
    has: Callable[[str], bool]


def plan(text: str, stage: Stage) -> Plan:
    """Choose what is run in place of a command."""
    for pattern, reason in NOT_RUN.items():
        if re.match(pattern, text):
            dry = text.replace("make ", "make -n ", 1) if text.startswith("make ") else ""
            dry = f"{text} --help" if text.startswith("python -m ") else dry
            return Plan("not run", dry, reason)
    words = shlex.split(text)
    if words[0] not in ("podman", "docker") and re.search(r"[|;&<>`]|\$\(", _outside_quotes(text)):
        raise Unknown("more than one plain command; write one a line")
    environment = [word for word in words if re.match(r"[A-Z_]+=", word)] if words[0] != "make" else []
    if environment and words[: len(environment)] == environment:
        inner = plan(_join(words[len(environment) :]), stage)
        return Plan(inner.kind, " ".join([*environment, inner.text]), inner.note)
    words[0] = {".venv/bin/sieve-edge": "sieve-edge", ".venv/bin/python": "python"}.get(words[0], words[0])
    rules: dict[str, Callable[[list[str], str, Stage], Plan]] = {
        "make": _make,
        "sieve-edge": _sieve_edge,
        "python": _python,
        "podman": _container,
        "docker": _container,
        "ray": _ray,
        "curl": _curl,
    }
    if words[0] in rules:
        return rules[words[0]](words, text, stage)
    if words[0] in ("source", "mkdir", "sed", "tar", "./install.sh", "./check.sh"):
        return Plan("run", text)
    raise Unknown(f"no rule for `{words[0]}`; add one to tests/docs/rules.py")


def _make(words: list[str], text: str, stage: Stage) -> Plan:
    goal = next((word for word in words[1:] if "=" not in word), "help")
    if goal in ("help", "setup", "demo", "demo-rag", "runtime", "readme"):
        note = "installed by make setup before" if goal in ("setup", "demo", "demo-rag", "runtime") else ""
        return Plan("run", text, note)
    if goal != "build":
        raise Unknown(f"no rule for make {goal}; add one to tests/docs/rules.py")
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    arguments = _on_pico(shlex.split(given.get("ARGS", "")), stage)
    given |= {"TARGET": stage.target(given.get("TARGET", "x86-cpu")), "ENGINE": "local", "ARGS": shlex.join(arguments)}
    return Plan("build", shlex.join(["make", "build", *(f"{name}={value}" for name, value in given.items())]), PICO)


def _sieve_edge(words: list[str], text: str, stage: Stage) -> Plan:
    verb = words[1] if len(words) > 1 else ""
    builds = ("build", "calibrate", "learn", "search", "fuse", "tune", "vocabulary", "quantize", "export", "validate")
    if "--help" in words or verb in (
        "report",
        "card",
        "inspect",
        "status",
        "targets",
        "doctor",
        "bundle",
        "settings",
        "completion",
        "--version",
    ):
        return Plan("run", _join(words) if words[0] != text.split(maxsplit=1)[0] else text)
    if verb in (*builds, "profile"):
        if "--target" not in words:
            raise Unknown(f"sieve-edge {verb} without --target")
        return Plan("build" if verb in ("build", "validate") else "run", _join(_on_pico(words, stage)), PICO)
    if verb == "tasks":
        if words[2:3] != ["check"]:
            return Plan("run", text)
        more = [] if "--model" in words else ["--model", stage.model]
        return Plan("run", _join([*words[:3], stage.task(words[3]), *words[4:], *more]), PICO)
    if verb == "serve":
        return Plan("serve", _join([*words, "--port", str(stage.port)]), "on a free port, in the background")
    if verb == "evaluate":
        at = words.index("--task") + 1
        words[at] = stage.task(words[at])
        return Plan("ask", _port(_join(words), stage), PICO)
    raise Unknown(f"no rule for sieve-edge {verb}; add one to tests/docs/rules.py")


def _python(words: list[str], text: str, stage: Stage) -> Plan:
    if words[1] == "-c" or (words[1:3] == ["-m", "pytest"] and "-k" in words):
        return Plan("run", text)
    if words[1] != "-m" or not words[2].startswith("benchmarks."):
        raise Unknown("python runs the benchmarks and a few tests only; add a rule to tests/docs/rules.py")
    if words[2] == "benchmarks.readme":
        return Plan("run", text)
    if words[2] == "benchmarks.pictures":
        if not stage.has("chromium"):
            return Plan("not run", "", "no Chromium is installed")
        return Plan("run", text)
    return Plan(
        "run", _join([*words, "--quick", "--threads", "1", "--target", stage.target("x86-cpu")]), f"{QUICK}, {PICO}"
    )


def _container(words: list[str], text: str, stage: Stage) -> Plan:
    """Run what the container would run, outside."""
    if "sieve_edge.cli" not in words:
        raise Unknown("a container runs sieve_edge.cli only; add a rule to tests/docs/rules.py")
    inner = ["sieve-edge", *words[words.index("sieve_edge.cli") + 1 :]]
    chosen = _sieve_edge(inner, _join(inner), stage)
    return Plan(chosen.kind, chosen.text, f"{PICO}, outside of the container")


def _ray(words: list[str], text: str, stage: Stage) -> Plan:
    if not stage.has("ray"):
        return Plan("not run", "", "ray is not installed: pip install 'sieve-edge[ray]'")
    if words[1] == "start":
        return Plan("run", f"ray start --head --port={stage.ray.rpartition(':')[2]} {stage.ray_options}", STOOD_IN)
    if words[1] == "status":
        return Plan("run", f"ray status --address={stage.ray}", "the head on this machine")
    if words[1] == "stop":
        return Plan("ray stop", text, "only the processes that were started here")
    raise Unknown(f"no rule for ray {words[1]}; add one to tests/docs/rules.py")


def _curl(words: list[str], text: str, stage: Stage) -> Plan:
    if not stage.has("curl"):
        return Plan("not run", "", "curl is not installed")
    return Plan("ask", _port(text.replace("curl ", "curl --fail --silent --show-error ", 1), stage))


def _on_pico(words: list[str], stage: Stage) -> list[str]:
    """Point a build's options at the pico stand-ins, and make it short."""
    words = list(words)
    for option, stand_in in (("--target", stage.target), ("--task", stage.task)):
        if option in words:
            at = words.index(option) + 1
            words[at] = stand_in(words[at])
    if "--ray-address" in words:
        words[words.index("--ray-address") + 1] = stage.ray
    for name, value in (SETTINGS | (GENETIC if "search.strategy=genetic" in words else {})).items():
        if not any(word.startswith(f"{name}=") for word in words):
            words += ["--set", f"{name}={value}"]
    return words


def _port(text: str, stage: Stage) -> str:
    return re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{stage.port}", text)


def _join(words: list[str]) -> str:
    """Join words to a command in which the reader's variables are still filled in."""
    return " ".join(word if re.fullmatch(r"[\w$./:=,-]+", word) else shlex.quote(word) for word in words)


def _outside_quotes(text: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"", "", text)
