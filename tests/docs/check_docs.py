"""Runs every command of README.md and docs/: ``python -m tests.docs.check_docs [FILE...]``, or ``make test-docs``.

Commands run in a copy of the checkout, in the order of the documents, each in a shell of its own that knows the
variables which the document set. Long ones run on a pico model or in short form; every such rewrite is printed. What
cannot be run here is printed with the reason, and only what tests/docs/rules.py lists may be. A command that it does
not know, or that fails, ends with exit code 1.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.docs import collect
from tests.docs.collect import Command, Example
from tests.docs.rules import Plan, Unknown, plan
from tests.docs.workspace import Workspace

SECONDS = 600
"""No command may take longer."""

CHANCE = {"faster", "loss_test"}
"""Limits that a model of 32 features may miss: times are noise at that size, and so is a loss on 200 examples."""

BUSY, TRIES = "timed out during startup", 3
"""What Ray says where a machine is too busy to start it in the half minute that it allows itself: such a command is
tried again, and that is printed."""

SERVER_SECONDS = 60


class Failed(Exception):
    """A documented command did not do what it says."""


class Reader:
    """Somebody who types what a document says, in its order."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._stage = workspace.stage()
        self._variables: dict[str, str] = {}
        self._folder = workspace.root
        self._server: subprocess.Popen[bytes] | None = None
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def read(self, path: Path) -> None:
        """Do what a document says."""
        self._variables, self._folder = {}, self._workspace.root
        for block in collect.blocks(self._workspace.root, path):
            for problem in collect.problems(block):
                self._fail(problem)
        for step in collect.steps(self._workspace.root, path):
            if isinstance(step, Example):
                self._write(step)
                continue
            try:
                self._do(step)
            except (Failed, Unknown, ValueError, subprocess.TimeoutExpired) as error:
                self._fail(f"{step.place}: {step.text.splitlines()[0]}: {error}")
        self.stop()

    def stop(self) -> None:
        """End the server, if one was started."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGINT)
            self._server.wait(SERVER_SECONDS)
            self._server = None

    def _fail(self, problem: str) -> None:
        print(f"FAILED {problem}", flush=True)
        self.failures.append(problem)

    def _write(self, example: Example) -> None:
        file = self._workspace.root / example.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(example.text, encoding="utf-8")
        print(f"{example.place}: writes {example.name}", flush=True)
        self.counts["files"] += 1

    def _do(self, command: Command) -> None:
        if command.assigned:
            name, value = command.assigned
            self._variables[name] = os.path.expandvars(value)
            print(f"{command.place}: {command.text}", flush=True)
            return
        if command.text.startswith("cd "):
            self._folder = (self._folder / shlex.split(command.text)[1]).resolve(strict=True)
            print(f"{command.place}: {command.text}", flush=True)
            return
        chosen = plan(command.text, self._stage)
        if chosen.kind != "ask":
            self.stop()
        self._tell(command, chosen)
        started = time.monotonic()
        if chosen.kind == "serve":
            self._serve(chosen.text)
        elif chosen.kind == "ray stop":
            self.stop_ray()
        elif chosen.text:
            self._run(chosen)
        self.counts["not run" if chosen.kind == "not run" else "run"] += 1
        self.counts["rewritten"] += bool(chosen.note and chosen.kind != "not run")
        print(f"    {time.monotonic() - started:.1f} s", flush=True)

    def _tell(self, command: Command, chosen: Plan) -> None:
        if chosen.kind == "not run":
            dry = f", only {chosen.text}" if chosen.text else ""
            print(f"{command.place}: {command.text} not run: {chosen.note}{dry}", flush=True)
        elif chosen.note:
            print(f"{command.place}: {command.text} -> {chosen.text} ({chosen.note})", flush=True)
        else:
            print(f"{command.place}: {command.text.splitlines()[0]}", flush=True)

    def _run(self, chosen: Plan) -> None:
        done = self._once(chosen)
        for _ in range(1, TRIES):
            if done.returncode == 0 or BUSY not in done.stdout + done.stderr:
                break
            print("    again, since Ray timed out during its start", flush=True)
            self.stop_ray()
            done = self._once(chosen)
        if done.returncode != 0 and not (chosen.kind == "build" and _by_chance(done.stdout)):
            told = "\n".join([*done.stdout.splitlines()[-5:], *done.stderr.splitlines()[-15:]])
            raise Failed(f"exit code {done.returncode}\n{told}")

    def _once(self, chosen: Plan) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", chosen.text],
            cwd=self._folder,
            env=self._workspace.environment() | self._variables,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def _serve(self, text: str) -> None:
        environment = self._workspace.environment() | self._variables
        words = ["bash", "-c", f"exec {text}"]
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        self._server = subprocess.Popen(
            words,
            cwd=self._folder,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (no threads yet)
        )
        deadline = time.monotonic() + SERVER_SECONDS
        while time.monotonic() < deadline:
            if self._server.poll() is not None:
                self._server = None
                raise Failed("the server ended at once")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._stage.port)) == 0:
                    return
            time.sleep(0.2)
        raise Failed(f"nobody listens after {SERVER_SECONDS} s")

    def stop_ray(self) -> None:
        """End the processes of the head that was started here, and no others: ``ray stop`` ends every one it finds."""
        mine = [each for each in psutil.process_iter(["cmdline"]) if _names(each, str(self._workspace.root.parent))]
        for process in mine:
            process.terminate()
        _, alive = psutil.wait_procs(mine, timeout=10)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=10)


def _names(process: psutil.Process, folder: str) -> bool:
    return process.pid != os.getpid() and any(folder in word for word in process.info["cmdline"] or ())


def _by_chance(stdout: str) -> bool:
    """Whether a build only missed limits that its size makes a matter of chance."""
    lines = [line for line in stdout.splitlines() if line.startswith("{")]
    if not lines:
        return False
    missed = {check["name"] for check in json.loads(lines[-1]).get("checks", ()) if check["passed"] is False}
    return bool(missed) and missed <= CHANCE


def main() -> None:
    """Run the commands of all documents, or of those that are named; most go on from what README.md builds."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    with Workspace() as workspace:
        reader = Reader(workspace)
        named = {str(Path(name)) for name in sys.argv[1:]}
        try:
            for path in collect.documents(workspace.root):
                name = str(path.relative_to(workspace.root))
                if not named or name in named:
                    reader.read(path)
        finally:
            reader.stop()
            reader.stop_ray()
    counts = reader.counts
    print(
        f"{counts['run']} commands run, {counts['rewritten']} of them in another form; {counts['not run']} not run, "
        f"see above; {counts['files']} files written; {len(reader.failures)} failed; {time.monotonic() - started:.0f} s"
    )
    for failure in reader.failures:
        print(f"FAILED {failure.splitlines()[0]}", file=sys.stderr)
    sys.exit(bool(reader.failures))


if __name__ == "__main__":
    main()
