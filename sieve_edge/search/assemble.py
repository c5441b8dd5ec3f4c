"""Puts a search together: the space, what a plan may cost, and the candidates with their executor and history."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sieve_edge.config import Target, Task
from sieve_edge.device.times import TimeTable
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.load import LoadedModel
from sieve_edge.model.matrices import count_params, linear_params
from sieve_edge.model.refit import refit_settings
from sieve_edge.model.statistics import CalibrationStats
from sieve_edge.progress import Progress
from sieve_edge.protocols import Float64
from sieve_edge.recipe import Recipe, SearchRecipe
from sieve_edge.search.budgets import Budget, check_reachable, params_budget, time_budget
from sieve_edge.search.candidates import Acceptance, Candidates, Reference
from sieve_edge.search.executor import Executor
from sieve_edge.search.history import History
from sieve_edge.search.scoring import ScoringData
from sieve_edge.search.space import SearchSpace, make_space
from sieve_edge.task.divergence import answer_greedily
from sieve_edge.task.examples import Example, label_ids
from sieve_edge.task.likelihood import prefix_and_tails

_Q6_K = 210 / 256
BYTES_PER_PARAM = {
    "F32": 4.0,
    "F16": 2.0,
    "int8": 36 / 32,
    "int4": 20 / 32,
    "Q8_0": 34 / 32,
    "Q5_K_M": _Q6_K,
    "Q4_K_M": _Q6_K,
    "Q4_0": _Q6_K,
}
"""Bytes of one weight by the target's quantization; of mixtures the largest type, so that a size is never exceeded."""

MakeExecutor = Callable[[LoadedModel, ProjectionBank, ScoringData, Progress], Executor]


def search_space(loaded: LoadedModel, target: Target, recipe: Recipe) -> SearchSpace:
    """Make the search space of a model on a target.

    Args:
        loaded: Dense model.
        target: The device.
        recipe: Grid, block skipping.

    Returns:
        The space.
    """
    other = count_params(loaded.model) - linear_params(loaded.specs)
    skip = recipe.search.allow_skip
    return make_space(loaded.specs, recipe.grid, target.storage, target.rank_multiple, other, skip)


def search_budgets(
    space: SearchSpace,
    recipe: SearchRecipe,
    quantization: str = "F32",
    times: TimeTable | None = None,
    answer_tokens: int = 1,
) -> list[Budget]:
    """Turn the user's limits into budgets.

    Args:
        space: Search space.
        recipe: Limits.
        quantization: The target's.
        times: The target's time table; needed where a time is limited.
        answer_tokens: Tokens of the longest answer; the prompt gives the first.

    Returns:
        A budget for each limit that is set; one that no plan can meet is a ``LimitMissed``.
    """
    mib = BYTES_PER_PARAM[quantization] / 2**20
    wanted = (("max_params", recipe.max_params, 1.0, "parameters"), ("max_size_mib", recipe.max_size_mib, mib, "MiB"))
    budgets = [
        params_budget(name, space.storage, each, space.other_params * each, limit, unit)
        for name, limit, each, unit in wanted
        if limit is not None
    ]
    timed = (
        ("max_time_per_answer_ms", recipe.max_time_per_answer_ms, 1, answer_tokens - 1),
        ("max_time_per_token_ms", recipe.max_time_per_token_ms, 0, 1),
    )
    for name, limit_ms, prompts, steps in timed:
        if limit_ms is not None and times is not None:
            budgets.append(time_budget(name, times, space.storage, prompts, steps, limit_ms))
    check_reachable(space, budgets)
    return budgets


def make_candidates(
    loaded: LoadedModel,
    bank: ProjectionBank,
    stats: CalibrationStats,
    dense_scores_NK: Float64,
    task: Task,
    target: Target,
    splits: Mapping[str, Sequence[Example]],
    recipe: Recipe,
    make_executor: MakeExecutor,
    cache: Path,
    out: Path,
    progress: Progress,
) -> Candidates:
    """Make what scores plans.

    Args:
        loaded: Dense model.
        bank: Its projections.
        stats: Calibration statistics, for the token weights of refit.
        dense_scores_NK: The dense model's label log-likelihoods on the selection split.
        task: The task.
        target: The device.
        splits: Examples; of them ``selection`` and ``calibration`` are used.
        recipe: Settings.
        make_executor: Where candidates are scored.
        cache: Scores that comparable searches share.
        out: Work folder.
        progress: Where progress is shown.

    Returns:
        Candidates.
    """
    data = scoring_data(loaded, stats, dense_scores_NK, task, splits, recipe)
    wanted = recipe.search
    return Candidates(
        loaded.specs,
        target.storage,
        make_executor(loaded, bank, data, progress),
        History(out / "history.jsonl", cache, progress),
        Reference(dense_scores_NK, data.labels),
        Acceptance(recipe.tolerance, wanted.accept, wanted.confidence, wanted.stop_confidence),
        out,
        progress,
    )


def scoring_data(
    loaded: LoadedModel,
    stats: CalibrationStats,
    dense_scores_NK: Float64,
    task: Task,
    splits: Mapping[str, Sequence[Example]],
    recipe: Recipe,
) -> ScoringData:
    """Collect what a worker needs beside model and bank.

    Args:
        loaded: Dense model.
        stats: Calibration statistics.
        dense_scores_NK: The dense model's label log-likelihoods on the selection split.
        task: The task.
        splits: Examples.
        recipe: Settings.

    Returns:
        The data.
    """
    wanted, selection = recipe.search, splits["selection"]
    calibration = [loaded.encode(example.prompt) for example in splits["calibration"]]
    asked = divergence_prompts(calibration, wanted.guided.divergence_prompts)
    dense = TorchTextModel(loaded.model, recipe.device)
    answered = answer_greedily(dense, asked, task.max_new_tokens, loaded.tokenizer.eos_token_id)
    prefix, tails = prefix_and_tails(calibration[: wanted.refit_prompts], wanted.batch_tokens)
    return ScoringData(
        prompts=[loaded.encode(example.prompt) for example in selection],
        answers=label_ids(task, loaded.encode),
        labels=np.array([example.label for example in selection]),
        dense_scores=dense_scores_NK,
        part=min(wanted.part, len(selection)),
        answered=answered,
        refit_prefix=prefix,
        refit_tails=tails,
        refit=refit_settings(stats, loaded.specs, recipe.learn.gradient_weight),
        batch_tokens=wanted.batch_tokens,
        threads=recipe.threads,
        device=recipe.device,
    )


def divergence_prompts(prompts: Sequence[list[int]], count: int) -> list[list[int]]:
    """Choose prompts of few different lengths, since prompts of one length are run together.

    Args:
        prompts: Token ids of the calibration prompts; the statistics were gathered over the first ones.
        count: How many to choose.

    Returns:
        Prompts of the split's second half, of its most frequent lengths.
    """
    half = prompts[len(prompts) // 2 :]
    frequency = Counter(map(len, half))
    return sorted(half, key=lambda prompt: (-frequency[len(prompt)], len(prompt)))[:count]
