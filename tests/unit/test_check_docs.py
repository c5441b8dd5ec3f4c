"""What ``make test-docs`` collects from the documentation, and how it rewrites what it runs; nothing is run here."""

from pathlib import Path

import pytest

from tests.docs import collect
from tests.docs.check_docs import _by_chance
from tests.docs.collect import Block, Command, Example
from tests.docs.rules import NOT_RUN, SETTINGS, Plan, Stage, Unknown, plan

CHECKOUT = Path(__file__).parents[2]
DOCUMENTS = [path.relative_to(CHECKOUT) for path in collect.documents(CHECKOUT)]


@pytest.fixture
def stage() -> Stage:
    return Stage(
        target=lambda name: f"pico/{Path(name).stem}.yaml",
        task=lambda name: name if name.endswith(".yaml") else f"pico/{name}.yaml",
        model="models/pico",
        port=1234,
        ray="127.0.0.1:4321",
        ray_options="--num-cpus=2",
        has=lambda name: True,
    )


def write(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


def shell(*lines: str) -> list[Command]:
    return list(collect.commands(Block("page.md", 3, ("sh",), lines)))


def test_readme_comes_first_then_what_it_links_to_in_that_order() -> None:
    names = [str(path) for path in DOCUMENTS]
    assert names[0] == "README.md"
    assert names.index("docs/new-task.md") < names.index("docs/new-family.md")
    assert sorted(names[1:]) == sorted(str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "docs").rglob("*.md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_fence_says_what_it_holds(document: Path) -> None:
    for block in collect.blocks(CHECKOUT, CHECKOUT / document):
        assert not collect.problems(block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_command_has_a_rule(document: Path, stage: Stage) -> None:
    for step in collect.steps(CHECKOUT, CHECKOUT / document):
        if isinstance(step, Command) and step.assigned is None and not step.text.startswith("cd "):
            assert isinstance(plan(step.text, stage), Plan)


def test_every_reason_not_to_run_is_used_or_speaks_of_make() -> None:
    commands = [
        step.text
        for document in DOCUMENTS
        for step in collect.steps(CHECKOUT, CHECKOUT / document)
        if isinstance(step, Command)
    ]
    used = {pattern for pattern in NOT_RUN if any(collect.re.match(pattern, text) for text in commands)}
    assert {pattern for pattern in NOT_RUN if not pattern.startswith("make ")} <= used


def test_comments_and_continued_lines_are_read_as_a_shell_does() -> None:
    found = shell("make build  # why", "", "# only a comment", "podman run \\", "    image  # end", "echo 'a # b'")
    assert [(command.line, command.text) for command in found] == [
        (3, "make build"),
        (6, "podman run image"),
        (8, "echo 'a # b'"),
    ]


def test_a_block_that_ends_in_a_continued_line_is_an_error() -> None:
    with pytest.raises(ValueError, match="continued line"):
        shell("make build \\")


def test_a_script_is_run_too(tmp_path: Path, stage: Stage) -> None:
    (script,) = collect.steps(tmp_path, write(tmp_path, "```python\nimport os\n\nprint('x')  # why\n```\n"))
    assert isinstance(script, Command)
    assert plan(script.text, stage) == Plan("run", script.text)
    assert script.text.startswith("python -c 'import os\n\nprint(")


def test_a_block_without_an_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"page\.md:2: this block has no end"):
        list(collect.blocks(tmp_path, write(tmp_path, "```sh\nmake\n")))


def test_commands_and_files_come_in_the_order_of_the_page(tmp_path: Path) -> None:
    text = "# A page\n```yaml a.yaml\nname: a\n```\n- in a list\n\n  ```sh\n  RUN=x/$USER\n  make build\n  ```\n"
    found = list(collect.steps(tmp_path, write(tmp_path, text)))
    assert found == [
        Example("page.md", 3, "a.yaml", "name: a\n"),
        Command("page.md", 8, "RUN=x/$USER"),
        Command("page.md", 9, "make build"),
    ]
    assert found[1].assigned == ("RUN", "x/$USER")
    assert found[2].assigned is None


@pytest.mark.parametrize(
    ("info", "line", "problem"),
    [
        ("", "anything", "fence ''"),
        ("bash", "make", "fence 'bash'"),
        ("text", "make build TARGET=x", "must be ```sh"),
        ("text", "$ ls", "must be ```sh"),
        ("text", "HF_HOME=x sieve-edge build", "must be ```sh"),
        ("yaml", "name: x", "says which"),
    ],
)
def test_what_nobody_would_run_is_a_problem(info: str, line: str, problem: str) -> None:
    (found,) = collect.problems(Block("page.md", 1, tuple(info.split()), (line,)))
    assert problem in found


@pytest.mark.parametrize("line", ["sieve-edge keeps its word", "makes sense", "name: make"])
def test_prose_and_files_are_no_commands(line: str) -> None:
    block = Block("page.md", 1, ("yaml", "a.yaml"), (line,))
    assert bool(collect.problems(block)) == line.startswith("sieve-edge ")


def test_a_build_runs_on_a_pico_model_with_short_settings(stage: Stage) -> None:
    chosen = plan("make build TARGET=x86-cpu", stage)
    assert (chosen.kind, chosen.note) == ("build", "pico")
    assert chosen.text.startswith("make build TARGET=pico/x86-cpu.yaml ENGINE=local 'ARGS=--set ")
    chosen = plan("sieve-edge build --target my.yaml --task t.yaml --set threads=2", stage)
    assert "--target pico/my.yaml --task t.yaml --set threads=2" in chosen.text
    assert "threads=1" not in chosen.text
    assert all(name in chosen.text for name in SETTINGS)


def test_what_is_short_runs_as_it_stands(stage: Stage) -> None:
    for text in (
        "sieve-edge report $RUN --json",
        "sieve-edge --help",
        "source .venv/bin/activate",
        "sieve-edge build --help",
    ):
        assert plan(text, stage) == Plan("run", text)


def test_benchmarks_run_in_their_short_form(stage: Stage) -> None:
    chosen = plan("python -m benchmarks.search", stage)
    assert chosen.text == "python -m benchmarks.search --quick --threads 1 --target pico/x86-cpu.yaml"
    assert "--quick" in chosen.note


def test_a_server_gets_a_free_port_and_is_asked_there(stage: Stage) -> None:
    assert plan("sieve-edge serve $RUN", stage) == Plan(
        "serve", "sieve-edge serve $RUN --port 1234", "on a free port, in the background"
    )
    asked = plan("sieve-edge evaluate --endpoint http://127.0.0.1:8080/v1 --task movie-sentiment", stage)
    assert asked.kind == "ask"
    assert asked.text.endswith("--endpoint http://127.0.0.1:1234/v1 --task pico/movie-sentiment.yaml")


def test_what_a_container_runs_is_run_outside_of_it(stage: Stage) -> None:
    chosen = plan("podman run --user $(id -u) image sieve_edge.cli validate --target x86-cpu --run-dir runs/x", stage)
    assert chosen.text.startswith("sieve-edge validate --target pico/x86-cpu.yaml --run-dir runs/x --set ")


def test_a_ray_of_ones_own_is_joined_and_only_that_one_is_ended(stage: Stage) -> None:
    assert plan("ray start --head --port=6379", stage).text == "ray start --head --port=4321 --num-cpus=2"
    assert "--ray-address 127.0.0.1:4321" in plan("sieve-edge search --target x --ray-address head:6379", stage).text
    assert plan("ray stop", stage).kind == "ray stop"


def test_what_is_not_run_has_a_reason_and_its_recipe_is_looked_at(stage: Stage) -> None:
    chosen = plan("make test-containers FULL=1", stage)
    assert (chosen.kind, chosen.text) == ("not run", "make -n test-containers FULL=1")
    assert chosen.note


@pytest.mark.parametrize(
    "text",
    [
        "rm -rf runs",
        "make everything",
        "sieve-edge dance",
        "sieve-edge build",
        "python setup.py",
        "docker run image sh",
        "make build | tee log",
        "make build && make test",
        "ray down",
    ],
)
def test_an_unknown_command_is_an_error(text: str, stage: Stage) -> None:
    with pytest.raises(Unknown):
        plan(text, stage)


def test_only_limits_that_are_chance_at_that_size_may_be_missed() -> None:
    assert _by_chance('noise\n{"checks": [{"name": "faster", "passed": false}, {"name": "drift", "passed": true}]}')
    assert not _by_chance('{"checks": [{"name": "file_size_mib", "passed": false}]}')
    assert not _by_chance('{"checks": [{"name": "faster", "passed": true}]}')
    assert not _by_chance("")
