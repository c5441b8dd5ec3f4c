"""One build: what it is made of, and which settings each stage's result depends on.

Heavy imports stand inside the functions, so that looking at a finished run is quick.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sieve_edge.artifacts import MANIFEST, read_manifest
from sieve_edge.compute import Compute
from sieve_edge.config import Target
from sieve_edge.files import file_sha256, read_json
from sieve_edge.model.source import ModelSource
from sieve_edge.progress import Progress
from sieve_edge.protocols import Chat
from sieve_edge.recipe import Recipe
from sieve_edge.resolve import settings_json
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import TUNING, Example, load_splits, splits_sha256
from sieve_edge.task.judge import OpenAIJudge
from sieve_edge.task_config import JudgeSettings, Task

if TYPE_CHECKING:
    from sieve_edge.model.load import LoadedModel


@dataclass(frozen=True)
class Run:
    """One build: model x task x target, with its recipe and its folder.

    Attributes:
        source: The model.
        task: The task.
        target: The device.
        recipe: Everything else.
        root: The run's folder.
        progress: Where progress is shown.
        plan: Number of the plan on the front that is fused, from 1; None for the search's choice.
        compute: Where the search scores its candidates; changes no artifact.
    """

    source: ModelSource
    task: Task
    target: Target
    recipe: Recipe
    root: Path
    progress: Progress
    plan: int | None = None
    compute: Compute = field(default_factory=Compute)

    @cached_property
    def splits(self) -> dict[str, tuple[Example, ...]]:
        """Examples of every split."""
        return load_splits(self.task, self.recipe.seed, self._chat() if self.task.messages else None)

    def _chat(self) -> Chat:
        """Say how the model's chats are written: as fuse noted it, so that validate needs no transformers."""
        fused, name = self.folder("fuse"), "sieve_edge.json"
        if (fused / MANIFEST).is_file():
            manifest = read_manifest(fused)
            whole = (fused / name).is_file() and file_sha256(fused / name) == manifest.outputs[name]["sha256"]
            if whole and manifest.inputs["model"] == self.source.sha256():
                noted = read_json(fused / name)["chat"]
                if noted:
                    return Chat(**noted)
        from sieve_edge.model.load import read_chat

        return read_chat(self.source)

    @property
    def scored_splits(self) -> dict[str, tuple[Example, ...]]:
        """The splits that every stage depends on: all but the one that only tune and vocabulary read."""
        return {name: examples for name, examples in self.splits.items() if name != TUNING}

    @cached_property
    def judge(self) -> OpenAIJudge | None:
        """Who judges written answers, for metric ``judge``; verdicts are shared by runs."""
        if self.task.metric != "judge":
            return None
        kept = self.root.parent / "shared" / "verdicts.sqlite"
        return OpenAIJudge(self.task.judge or JudgeSettings(), kept, self.root.name)

    @property
    def examiner(self) -> Examiner:
        """Says what is asked, and what answers are worth."""
        return Examiner(self.task, self.judge)

    @cached_property
    def loaded(self) -> "LoadedModel":
        """The dense model, its matrices as the target's storage prunes them; no stage changes it."""
        import torch

        from sieve_edge.model.load import check_devices, load_model
        from sieve_edge.model.stored_types import misfits, plan_types, refuse_misfits
        from sieve_edge.model.tokens import check_tokenizer
        from sieve_edge.model.widths import width_specs

        torch.set_num_threads(self.recipe.threads)
        check_devices(self.recipe.devices)
        self.progress.say(f"  loading {self.source.reference}")
        loaded = load_model(self.source, self.recipe.main_device)
        # What the model itself cannot have is refused here, before anything expensive.
        refuse_misfits(misfits(plan_types(loaded.model, self.target)), self.target, self.recipe.quantize)
        if self.recipe.vocabulary.keep != "all":
            check_tokenizer(json.loads(loaded.tokenizer.backend_tokenizer.to_str()))
        if self.target.storage != "width":
            return loaded
        return replace(loaded, specs=width_specs(loaded.specs, loaded.model.config))

    def folder(self, verb: str) -> Path:
        """Name a stage's folder.

        Args:
            verb: The stage.

        Returns:
            The folder inside the run.
        """
        return self.root / verb

    def checkpoint(self, verbs: Sequence[str] = ("vocabulary", "tune")) -> Path:
        """Find the pruned model.

        Args:
            verbs: Stages after fuse that may have changed it, the last one first.

        Returns:
            The folder of the first of these stages that left a checkpoint, else that of fuse.
        """
        changed = [verb for verb in verbs if (self.folder(verb) / "config.json").is_file()]
        return self.folder(changed[0] if changed else "fuse")

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the pruned model."""
        if self.recipe.vocabulary.keep == "all":
            return self.loaded.tokenizer
        from sieve_edge.model.load import load_tokenizer

        return load_tokenizer(self.checkpoint())


def stage_settings(verb: str, run: Run) -> dict[str, Any]:
    """Say which settings a stage's result depends on.

    Args:
        verb: The stage.
        run: The build.

    Returns:
        JSON-compatible settings; a change of any makes the artifact stale.
    """
    return _SETTINGS[verb](run, settings_json(run.recipe), settings_json(run.task), settings_json(run.target))


Tree = dict[str, Any]


def _calibrate(run: Run, recipe: Tree, task: Tree, target: Tree) -> Tree:
    gathered = {name: recipe["learn"][name] for name in ("method", "output_metric", "fisher_prompts")}
    lengths = {"calibration_tokens": recipe["calibration_tokens"], "max_new_tokens": task["max_new_tokens"]}
    # Pairs and pivots share their statistics; widths need others.
    sides = {"storage": "width"} if target["storage"] == "width" else {}
    # Sums of several devices are rounded otherwise than those of one.
    return {**scoring_settings(run), "device": recipe["device"], **gathered, **lengths, **sides}


def _learn(run: Run, recipe: Tree, _: Tree, target: Tree) -> Tree:
    compute = {"threads": recipe["threads"], "device": recipe["device"]}
    # What decides which ranks are fitted: to list them, the model would have to be loaded.
    decided = {"grid": recipe["grid"], "skip": recipe["search"]["allow_skip"]}
    decided |= {"storage": target["storage"], "multiple": target["rank_multiple"]}
    return {**compute, **recipe["learn"], "ranks": decided if run.recipe.learn.method == "gradient" else {}}


def _search(run: Run, recipe: Tree, _: Tree, target: Tree) -> Tree:
    own = {name: value for name, value in recipe["search"].items() if name != "tolerance"}
    asked = {"tolerance": run.recipe.search_tolerance, "grid": recipe["grid"], "search": own}
    levels = {"storage": target["storage"], "multiple": target["rank_multiple"]}
    if run.recipe.search.max_size_mib is not None:
        levels["stored"] = [target["format"], target["quantization"]]
    if run.recipe.search.limits_time:
        device = ("format", "runtime", "execution_provider", "threads", "quantization", "workload", "connection")
        levels["timed"] = [target[name] for name in device]
    return {**scoring_settings(run), **asked, **levels}


def _fuse(run: Run, _: Tree, task: Tree, __: Tree) -> Tree:
    return {**scoring_settings(run), "task": task["name"], **_asked(task), "plan": run.plan}


def _tune(run: Run, recipe: Tree, task: Tree, _: Tree) -> Tree:
    if run.recipe.tune.method == "none":
        return {"method": "none"}
    needed = {"tolerance": recipe["tolerance"], **_asked(task), **_further_examples(run)}
    return {**scoring_settings(run), **recipe["tune"], **needed}


def _further_examples(run: Run) -> Tree:
    return {"examples": splits_sha256({TUNING: run.splits[TUNING]})} if TUNING in run.splits else {}


def _vocabulary(run: Run, recipe: Tree, task: Tree, _: Tree) -> Tree:
    if run.recipe.vocabulary.keep == "all":
        return {"keep": "all"}
    own = run.recipe.vocabulary.texts_file
    texts = None if own is None else file_sha256(Path(own))
    needed = {**_asked(task), **_further_examples(run), "texts_sha256": texts}
    return {**scoring_settings(run), **recipe["vocabulary"], **needed}


def _quantize(_: Run, recipe: Tree, task: Tree, target: Tree) -> Tree:
    stored = {name: target[name] for name in ("format", "quantization")}
    if target["quantization"] in ("F32", "F16"):
        return {**stored, "allow_fallback": recipe["quantize"]["allow_fallback"]}
    return {**stored, **recipe["quantize"], "threads": recipe["threads"], **_asked(task)}


def _export(_: Run, __: Tree, task: Tree, target: Tree) -> Tree:
    return {**{name: target[name] for name in ("format", "runtime", "quantization")}, "task": task["name"]}


def _validate(_: Run, recipe: Tree, task: Tree, target: Tree) -> Tree:
    return {"target": target, "tolerance": recipe["tolerance"], "task": task["name"]}


_SETTINGS: dict[str, Callable[[Run, Tree, Tree, Tree], Tree]] = {
    "calibrate": _calibrate,
    "learn": _learn,
    "search": _search,
    "fuse": _fuse,
    "tune": _tune,
    "vocabulary": _vocabulary,
    "quantize": _quantize,
    "export": _export,
    "validate": _validate,
}


def scoring_settings(run: Run) -> dict[str, Any]:
    """Say what a score depends on, beside the model and the examples.

    Args:
        run: The build.

    Returns:
        JSON-compatible settings.
    """
    recipe = run.recipe
    compute = {"threads": recipe.threads, "device": recipe.main_device, "batch_tokens": recipe.search.batch_tokens}
    asked = settings_json(run.task)
    graded = ("labels", "metric", "pattern", "field", "stop", "max_new_tokens")
    judge = (run.task.judge or JudgeSettings()) if run.task.metric == "judge" else None
    # Ceilings and the like change no verdict; a longer answer may hold one that was cut off.
    who = () if judge is None else (judge.model, judge.base_url, judge.seed, judge.screen, judge.max_answer_tokens)
    judged = {"judge": list(who)} if who else {}
    return {**compute, **{name: asked[name] for name in graded}, **judged}


def _asked(task: Tree) -> Tree:
    return {name: task[name] for name in ("prompt", "messages", "shots")}


def gradient_levels(run: Run) -> dict[str, list[int]]:
    """List the ranks that the gradient method must fit; the other methods serve every rank, whatever the target.

    Args:
        run: The build.

    Returns:
        Matrix name -> ranks, rising; empty for the other methods.
    """
    if run.recipe.learn.method != "gradient":
        return {}
    from sieve_edge.search.assemble import search_space

    space = search_space(run.loaded, run.target, run.recipe)
    return {
        spec.name: sorted(level.rank for level in levels if level.rank is not None)
        for spec, levels in zip(space.specs, space.levels, strict=True)
    }
