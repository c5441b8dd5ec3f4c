"""Resolves what a user names to configuration: shipped targets and tasks, files, packages, ``--set``."""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import ValidationError

from sieve_edge.config import BITS, BLOCK, Strict, Target
from sieve_edge.errors import ConfigError, EnvironmentMissing
from sieve_edge.recipe import Recipe
from sieve_edge.task_config import Task
from sieve_edge.weight_types import ROWS

Config = TypeVar("Config", bound=Strict)

EXPORTS_THAT_SKIP = {"onnx": True, "gguf": False}
"""Target format -> whether a file of it can hold a model of which whole blocks are left out (``search.allow_skip``)."""


def shipped_targets() -> dict[str, Path]:
    """Find the targets that come with the package.

    Returns:
        Name -> YAML file; in a checkout the package's folder is a link to ``targets/``.
    """
    folder = Path(str(resources.files("sieve_edge"))) / "targets"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def shipped_tasks() -> dict[str, Path]:
    """Find the tasks that come with the package.

    Returns:
        Name -> YAML file.
    """
    folder = Path(str(resources.files("sieve_edge"))) / "task" / "presets"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load_target(name_or_path: str) -> Target:
    """Read a target by shipped name or by path.

    Args:
        name_or_path: ``x86-cpu``, or a YAML file.

    Returns:
        The target.
    """
    return _load(Target, name_or_path, "target", shipped_targets())


def load_task(name_or_path: str) -> Task:
    """Read a task by shipped name or by path.

    Args:
        name_or_path: ``movie-sentiment``, or a YAML file.

    Returns:
        The task.
    """
    return _load(Task, name_or_path, "task", shipped_tasks())


def load_recipe(settings: tuple[str, ...]) -> Recipe:
    """Make a recipe from ``key=value`` settings on top of the defaults.

    Args:
        settings: For example ``("tolerance=0.01", "learn.method=gradient")``.

    Returns:
        The recipe.

    Raises:
        ConfigError: If a setting has no ``=``, an unknown key or a bad value; all at once.
    """
    tree: dict[str, Any] = {}
    problems = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            problems.append(f"'{setting}' is not KEY=VALUE, for example tolerance=0.05")
            continue
        *parents, leaf = key.strip().split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                break
        if not isinstance(branch, dict):
            problems.append(f"'{setting}' sets a part of a plain value")
            continue
        try:
            branch[leaf] = yaml.safe_load(value)
        except yaml.YAMLError:
            branch[leaf] = value
    if problems:
        raise ConfigError("--set", problems)
    return _validated(Recipe, tree, "--set")


class Setting(NamedTuple):
    """One thing that ``--set`` takes: its key, its default as YAML and as a value, and what it means."""

    key: str
    default: str
    value: Any
    description: str


def recipe_fields() -> list[Setting]:
    """List everything that ``--set`` takes.

    Returns:
        Settings, in the order of the recipe.
    """
    return list(_fields(Recipe(), ""))


def _fields(values: Strict, prefix: str) -> Iterator[Setting]:
    for name, field in type(values).model_fields.items():
        value = getattr(values, name)
        if isinstance(value, Strict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            plain = json.loads(json.dumps(value))
            told = "null" if plain is None else plain if isinstance(plain, str) else json.dumps(plain)
            yield Setting(f"{prefix}{name}", told, plain, field.description or "")


def check_build(target: Target, recipe: Recipe) -> None:
    """Refuse what a target has no means for, before anything expensive.

    Args:
        target: The device.
        recipe: Settings.

    Raises:
        ConfigError: If a setting does not suit the target or another setting; all problems at once.
    """
    problems = [*_row_problems(target, recipe), *_search_problems(target, recipe), *_vocabulary_problems(recipe)]
    if problems:
        raise ConfigError("--set", problems)


def check_packages(recipe: Recipe, verbs: Sequence[str]) -> None:
    """Refuse what needs a package that is not here, before the first stage that has something to do.

    Args:
        recipe: Settings.
        verbs: Stages that are still to run; a device that only validates needs no package of the others.

    Raises:
        EnvironmentMissing: If LoRA is to be trained without its package.
    """
    if "tune" in verbs and recipe.tune.method == "lora" and importlib.util.find_spec("peft") is None:
        raise EnvironmentMissing("tune.method=lora: peft is not installed; run: pip install 'sieve-edge[tune]'")


def _row_problems(target: Target, recipe: Recipe) -> Iterator[str]:
    """Refuse ranks here that quantize would refuse after hours."""
    rows = ROWS.get(target.quantization, 1)
    if target.rank_multiple % rows and not recipe.quantize.allow_fallback:
        yield (
            f"rank_multiple: {target.rank_multiple} of target {target.name}, must be a multiple of {rows} for "
            f"quantization {target.quantization}, whose rows are stored in blocks of that; set rank_multiple: {rows}, "
            "choose another quantization, or --set quantize.allow_fallback=true"
        )


def _search_problems(target: Target, recipe: Recipe) -> Iterator[str]:
    wanted = recipe.search
    if wanted.allow_skip and not EXPORTS_THAT_SKIP[target.format]:
        able = ", ".join(name for name, can in EXPORTS_THAT_SKIP.items() if can)
        yield (
            f"search.allow_skip: true, but format {target.format} of target {target.name} cannot hold skipped blocks "
            f"(only {able}); leave it false, or choose another target"
        )
    if target.storage == "width" and recipe.learn.method != "closed_form":
        yield f"learn.method: {recipe.learn.method}, must be closed_form for storage width of target {target.name}"
    if wanted.limits_time:
        for problem in time_problems(target):
            yield f"search.max_time_per_answer_ms, search.max_time_per_token_ms: {problem}; limit the size instead"
    if wanted.max_size_mib is not None and target.quantization in BITS and target.rank_multiple % BLOCK:
        yield (
            f"search.max_size_mib: rows of {target.quantization} weights are stored in blocks of 32, and rank_multiple "
            f"{target.rank_multiple} of target {target.name} is no multiple of that, so sizes are not known in advance"
        )


def time_problems(target: Target) -> list[str]:
    """Say why no time table can be measured for a target.

    Args:
        target: The device.

    Returns:
        Reasons; none if it can.
    """
    problems = []
    if target.gpu_layers:
        problems.append(f"there is no time table for llama.cpp on the GPU (gpu_layers of target {target.name})")
    if target.connection is None:
        problems.append(f"times are measured on the device, and target {target.name} has no connection to it")
    return problems


def _vocabulary_problems(recipe: Recipe) -> Iterator[str]:
    own = recipe.vocabulary.texts_file
    if recipe.vocabulary.first_tokens and recipe.vocabulary.keep == "all":
        yield "vocabulary.first_tokens: has no use while vocabulary.keep is all; set vocabulary.keep=auto too"
    if own is None:
        return
    if recipe.vocabulary.keep == "all":
        yield "vocabulary.texts_file: has no use while vocabulary.keep is all; set vocabulary.keep=auto too"
    if not Path(own).is_file():
        yield f"vocabulary.texts_file: {own} is not a file"


def package_file(reference: str) -> Path:
    """Find a file inside an installed package, without importing the package.

    Args:
        reference: ``package:IMPORT_NAME/PATH``.

    Returns:
        The file's path; whether it exists is for the caller to see.

    Raises:
        EnvironmentMissing: If the package is not installed.
    """
    package, _, inside = reference.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentMissing(
            f"{reference}: package '{package}' is not installed; make demo or make demo-rag install what shipped tasks "
            "need"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def settings_json(config: Strict) -> dict[str, Any]:
    """Turn configuration into plain JSON values, for manifests and keys.

    Args:
        config: Any configuration object.

    Returns:
        JSON-compatible dictionary.
    """
    plain: dict[str, Any] = json.loads(config.model_dump_json())
    return plain


def _load(kind: type[Config], name_or_path: str, word: str, shipped: dict[str, Path]) -> Config:
    file = shipped.get(name_or_path, Path(name_or_path))
    if not file.is_file():
        names = ", ".join(shipped) or "none"
        raise ConfigError(f"{word} '{name_or_path}'", [f"not a shipped {word} ({names}) and not a file"])
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), [f"not valid YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(tree, dict):
        raise ConfigError(str(file), ["must be a mapping of fields to values"])
    return _validated(kind, tree, str(file))


def _validated(kind: type[Config], tree: dict[str, Any], source: str) -> Config:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(source, [_one_problem(kind, item) for item in error.errors()]) from error


def _one_problem(kind: type[Strict], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    # An address may hold a key, and one may have been pasted for the name of its variable; what holds them is a tree.
    secret = {"base_url", "api_key_env"} & set(item["loc"]) or isinstance(item["input"], dict | list)
    told = item["type"] not in ("missing", "extra_forbidden") and not secret
    value = f" (got {item['input']!r})" if told else ""
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = f"unknown field; known: {', '.join(kind.model_fields)}" if len(item["loc"]) == 1 else "unknown field"
    return f"{path}: {message}{value}" if path else f"{message}"
