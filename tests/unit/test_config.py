"""Targets, tasks and recipes: strict, with every problem in one error."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from click.testing import CliRunner

from sieve_edge.cli import cli
from sieve_edge.config import Target
from sieve_edge.errors import ConfigError
from sieve_edge.recipe import Recipe
from sieve_edge.resolve import (
    EXPORTS_THAT_SKIP,
    check_build,
    load_recipe,
    load_target,
    load_task,
    settings_json,
    shipped_targets,
    shipped_tasks,
)
from sieve_edge.task.examples import load_splits

ROOT = Path(__file__).parents[2]


def _edited(original: Path, tmp_path: Path, **changes: Any) -> str:
    """Copy a YAML file with some fields replaced, or left out where None; return the copy's path."""
    tree = yaml.safe_load(original.read_text(encoding="utf-8"))
    for field, value in changes.items():
        if value is None:
            tree.pop(field)
        else:
            tree[field] = value
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("file", sorted((ROOT / "targets").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_target_loads(file: Path) -> None:
    target = load_target(file.stem)
    # A link is a second name.
    assert target.name == file.resolve().stem
    assert target.task in shipped_tasks()
    assert load_target(str(file)) == target


@pytest.mark.parametrize(
    "file", sorted((ROOT / "sieve_edge" / "task" / "presets").glob("*.yaml")), ids=lambda file: file.stem
)
def test_every_shipped_task_loads(file: Path) -> None:
    task = load_task(file.stem)
    assert task.name == file.stem
    assert load_task(str(file)) == task


@pytest.mark.parametrize("name", shipped_tasks())
def test_the_data_of_every_shipped_task_is_enough(name: str) -> None:
    task = load_task(name)
    package = task.source.path.removeprefix("package:").split("/")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make demo-rag")
    splits = load_splits(task, 0)
    wanted = {split: size for split, size in task.splits.model_dump().items() if size}
    wanted["calibration"] -= task.shots
    assert {split: len(examples) for split, examples in splits.items()} == wanted
    if name == "boolq":
        # The questions of its transfer set end with a mark of their own.
        assert all("?\nAnswer:" in one.prompt and "??\n" not in one.prompt for one in splits["transfer"])


def test_something_is_shipped() -> None:
    assert "x86-cpu" in shipped_targets()
    assert "movie-sentiment" in shipped_tasks()


def test_all_problems_of_a_target_at_once(toy_target: Path, tmp_path: Path) -> None:
    limits = {"time_per_token_p95_s": 1, "file_size_mib": -3}
    path = _edited(toy_target, tmp_path, threads="many", colour="red", format=None, limits=limits)
    with pytest.raises(ConfigError) as caught:
        load_target(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(caught.value.problems) == 5
    assert f"{path}: threads: " in message
    assert "(got 'many')" in message
    assert "colour: unknown field; known: name, description, format" in message
    assert "format: Field required" in message
    assert "limits.time_per_token_p95_s: unknown field" in message
    assert "limits.file_size_mib: Input should be greater than 0 (got -3)" in message


@pytest.mark.parametrize("value", ["35 ms", "35ms", ".nan", "yes please"])
def test_a_value_with_a_unit_is_refused(toy_target: Path, tmp_path: Path, value: str) -> None:
    path = _edited(toy_target, tmp_path, limits={"time_per_token_p95_ms": value})
    with pytest.raises(ConfigError, match=r"limits\.time_per_token_p95_ms: .*number"):
        load_target(path)


def test_unknown_names_list_what_is_shipped() -> None:
    with pytest.raises(ConfigError, match=r"target 'x86': not a shipped target \(.*x86-cpu.*\) and not a file"):
        load_target("x86")
    with pytest.raises(ConfigError, match=r"task 'sentiment': not a shipped task \(.*movie-sentiment.*\)"):
        load_task("sentiment")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"name: [", "not valid YAML"), (b"\xff\xfe", "not valid YAML"), (b"- a", "must be a mapping"), (b"", "mapping")],
)
def test_a_file_that_is_no_yaml_mapping(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_target(str(path))
    assert "\n" not in str(caught.value)


def test_all_problems_of_a_task_at_once(toy_task: Path, tmp_path: Path) -> None:
    path = _edited(toy_task, tmp_path, source={"path": "data.csv"}, splits={"calibration": 1, "selection": 5})
    with pytest.raises(ConfigError) as caught:
        load_task(path)
    message = str(caught.value)
    assert "source.path: 'data.csv' must start with file:, package: or hf:" in message
    assert "splits.selection: Input should be greater than or equal to 20 (got 5)" in message
    assert "splits.test: Field required" in message


def test_a_task_that_cannot_be_asked(toy_task: Path, tmp_path: Path) -> None:
    path = _edited(toy_task, tmp_path, prompt="Sentiment:", labels={"0": " bad", "1": " bad"})
    with pytest.raises(ConfigError) as caught:
        load_task(path)
    assert "prompt: contains no {{ text }}" in str(caught.value)
    assert "labels: answers must be distinct and not empty" in str(caught.value)


def test_all_problems_of_further_calibration_sources_at_once(toy_task: Path, tmp_path: Path) -> None:
    good = {"path": "file:more.csv"}
    sources = [{**good, "weight": 0}, {**good, "weight": "half"}, {"path": "more.csv"}, {**good, "wait": 1}]
    path = _edited(toy_task, tmp_path, calibration_sources=sources)
    with pytest.raises(ConfigError) as caught:
        load_task(path)
    message = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "calibration_sources.0.weight: Input should be greater than 0 (got 0)" in message
    assert "calibration_sources.1.weight: " in message
    assert "calibration_sources.2.path: 'more.csv' must start with file:, package: or hf:" in message
    assert "calibration_sources.3.wait: unknown field" in message


def test_a_calibration_split_smaller_than_its_sources(toy_task: Path, tmp_path: Path) -> None:
    splits = {"calibration": 2, "selection": 100, "test": 200, "transfer": 100}
    sources = [{"path": "file:one.csv"}, {"path": "file:two.csv", "weight": 0.5}]
    path = _edited(toy_task, tmp_path, splits=splits, calibration_sources=sources, labels={"0": " bad"})
    with pytest.raises(ConfigError) as caught:
        load_task(path)
    assert "splits.calibration: 2 is fewer than the 3 sources it has" in str(caught.value)
    assert "labels: 1 given, at least 2 are needed" in str(caught.value)
    task = load_task(_edited(toy_task, tmp_path, calibration_sources=sources))
    assert [source.weight for source in task.calibration_sources] == [1.0, 0.5]


def test_settings_change_the_defaults() -> None:
    recipe = load_recipe(("tolerance=0.01", "learn.method=gradient", "grid=[1.0, 0.5]"))
    assert (recipe.tolerance, recipe.learn.method, recipe.grid) == (0.01, "gradient", (1.0, 0.5))
    assert recipe.search == Recipe().search
    assert load_recipe(()) == Recipe()


def test_settings_without_a_value_or_below_a_plain_one() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(("tolerance", "seed=1", "seed.deep=2"))
    assert "'tolerance' is not KEY=VALUE, for example tolerance=0.05" in str(caught.value)
    assert "'seed.deep=2' sets a part of a plain value" in str(caught.value)


def test_all_problems_of_settings_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(("tolerance=2", "learn.method=magic", "nonsense=1", "grid=[0.5, 1.0]"))
    message = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "--set: nonsense: unknown field; known: tolerance, " in message
    assert "grid: must start at 1.0 and fall strictly" in message


def test_a_plan_may_lose_more_only_before_tuning() -> None:
    with pytest.raises(ConfigError, match=r"search\.tolerance: 0\.3 is above tolerance 0\.05.*tune\.method=lora"):
        load_recipe(("search.tolerance=0.3",))
    recipe = load_recipe(("search.tolerance=0.3", "tune.method=lora"))
    assert (recipe.search_tolerance, recipe.tolerance) == (0.3, 0.05)
    assert load_recipe(("tolerance=0.1",)).search_tolerance == 0.1
    assert load_recipe(("search.tolerance=0.01",)).search_tolerance == 0.01


def test_skipping_is_off_and_every_format_says_whether_it_can_hold_it(toy_target: Path) -> None:
    assert set(EXPORTS_THAT_SKIP) == set(get_args(Target.model_fields["format"].annotation))
    assert not Recipe().search.allow_skip
    check_build(load_target(str(toy_target)), load_recipe(("search.allow_skip=true",)))


@pytest.mark.parametrize("setting", ["texts_file=missing.txt", "first_tokens=5"])
def test_settings_of_a_vocabulary_that_stays_whole_are_refused(toy_target: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match="has no use while vocabulary"):
        check_build(load_target(str(toy_target)), load_recipe((f"vocabulary.{setting}",)))
    check_build(load_target(str(toy_target)), load_recipe(("vocabulary.keep=auto", "vocabulary.first_tokens=5")))


def test_a_format_that_cannot_hold_skipped_blocks_is_refused(
    toy_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPORTS_THAT_SKIP, "onnx", False)
    monkeypatch.setitem(EXPORTS_THAT_SKIP, "other", True)
    options = ["--target", str(toy_target), "--model", str(tmp_path / "nowhere"), "--run-dir", str(tmp_path / "run")]
    done = CliRunner().invoke(cli, ["search", *options, "--set", "search.allow_skip=true"])
    assert done.exit_code == ConfigError.exit_code
    assert done.stderr.splitlines()[-1] == (
        "error: --set: search.allow_skip: true, but format onnx of target toy-cpu cannot hold skipped blocks "
        "(only other); leave it false, or choose another target"
    )
    assert not (tmp_path / "run").exists()
    assert "not a directory" in CliRunner().invoke(cli, ["search", *options]).stderr


@pytest.mark.parametrize(("quantization", "rows"), [("Q8_0", 32), ("Q4_0", 32), ("Q4_K_M", 256), ("Q5_K_M", 256)])
def test_ranks_that_a_quantization_cannot_store_are_refused(quantization: str, rows: int) -> None:
    shipped = load_target("x86-gguf")
    wrong = shipped.model_copy(update={"quantization": quantization, "rank_multiple": rows // 2})
    with pytest.raises(ConfigError) as caught:
        check_build(wrong, Recipe())
    assert str(caught.value) == (
        f"--set: rank_multiple: {rows // 2} of target x86-gguf, must be a multiple of {rows} for quantization "
        f"{quantization}, whose rows are stored in blocks of that; set rank_multiple: {rows}, choose another "
        "quantization, or --set quantize.allow_fallback=true"
    )
    check_build(wrong, load_recipe(("quantize.allow_fallback=true",)))
    check_build(wrong.model_copy(update={"rank_multiple": 2 * rows}), Recipe())


@pytest.mark.parametrize("name", shipped_targets())
def test_shipped_targets_can_be_built(name: str) -> None:
    check_build(load_target(name), Recipe())


def test_settings_as_plain_json() -> None:
    assert settings_json(Recipe())["grid"][0] == 1.0
    assert Recipe.model_validate(settings_json(Recipe())) == Recipe()
