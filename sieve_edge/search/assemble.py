"""Puts a search together: the space, what a plan may cost, and the candidates with their executor and history."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sieve_edge.config import Target
from sieve_edge.device.times import TimeTable
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.load import LoadedModel
from sieve_edge.model.matrices import count_params, linear_params
from sieve_edge.model.refit import refit_settings
from sieve_edge.model.statistics import CalibrationStats
from sieve_edge.progress import Progress
from sieve_edge.recipe import Recipe, SearchRecipe
from sieve_edge.search.acceptance import CONFIDENCES, Acceptance, Reference
from sieve_edge.search.budgets import Budget, check_reachable, params_budget, size_budget, time_budget
from sieve_edge.search.candidates import Candidates
from sieve_edge.search.executor import Executor
from sieve_edge.search.history import History
from sieve_edge.search.scoring import ScoringData
from sieve_edge.search.sizes import Sizes, plain_sizes
from sieve_edge.search.space import SearchSpace, make_space
from sieve_edge.task.divergence import with_answers
from sieve_edge.task.exam import Answers, Exam
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import Example
from sieve_edge.task.likelihood import prefix_and_tails, shared_prefix
from sieve_edge.task.written import is_judged, screened
from sieve_edge.task_config import Task

REFIT_TOKENS = 16_384
"""Tokens of refit's prompts: it holds the hidden states of all of them, of one layer at a time."""

DIVERGENCE_TOKENS = 16
"""Answer positions that a KL divergence compares: workers keep the dense distributions over the whole vocabulary."""

_LEAST_PROMPTS = 10

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
    sizes: Sizes | None = None,
    times: TimeTable | None = None,
    answer_tokens: int = 1,
) -> list[Budget]:
    """Turn the user's limits into budgets.

    Args:
        space: Search space.
        recipe: Limits.
        sizes: What weights take on the target; left out, float32.
        times: The target's time table; needed where a time is limited.
        answer_tokens: Tokens of the longest answer; the prompt gives the first.

    Returns:
        A budget for each limit that is set; one that no plan can meet is a ``LimitMissed``.
    """
    budgets = []
    if recipe.max_params is not None:
        limit = recipe.max_params
        budgets.append(params_budget("max_params", space.storage, 1.0, space.other_params, limit, "parameters"))
    if recipe.max_size_mib is not None:
        budgets.append(size_budget(sizes or plain_sizes(space.storage, space.other_params), recipe.max_size_mib))
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
    dense_answers: Answers,
    examiner: Examiner,
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
        dense_answers: The dense model's answers to the selection split.
        examiner: Says what is asked.
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
    exam = examiner.exam(splits["selection"], loaded.backend, loaded.ends)
    data = scoring_data(loaded, stats, exam, dense_answers, examiner.task, splits, recipe)
    wanted = recipe.search
    return Candidates(
        loaded.specs,
        target.storage,
        make_executor(loaded, bank, data, progress),
        History(out / "history.jsonl", cache, progress),
        Reference(exam, dense_answers),
        Acceptance(
            recipe.search_tolerance,
            wanted.accept,
            wanted.confidence or CONFIDENCES[target.storage],
            wanted.stop_confidence,
        ),
        out,
        progress,
    )


def scoring_data(
    loaded: LoadedModel,
    stats: CalibrationStats,
    exam: Exam,
    dense_answers: Answers,
    task: Task,
    splits: Mapping[str, Sequence[Example]],
    recipe: Recipe,
) -> ScoringData:
    """Collect what a worker needs beside model and bank.

    Args:
        loaded: Dense model.
        stats: Calibration statistics.
        exam: The selection split.
        dense_answers: The dense model's answers to it.
        task: The task.
        splits: Examples; of them ``calibration`` is used.
        recipe: Settings.

    Returns:
        The data.
    """
    wanted = recipe.search
    calibration = [loaded.encode(example.prompt) for example in splits["calibration"]]
    asked = divergence_prompts(calibration, wanted.guided.divergence_prompts)
    dense = TorchTextModel(loaded.model, recipe.main_device)
    new_tokens = min(task.max_new_tokens, DIVERGENCE_TOKENS)
    answered = with_answers(dense, asked, new_tokens, exam.ended, wanted.batch_tokens)
    prefix, tails = refit_prompts(loaded, calibration, exam, task, recipe)
    return ScoringData(
        exam=screened(exam),
        dense_answers=dense_answers,
        part=first_part(exam, wanted.part),
        answered=answered,
        refit_prefix=prefix,
        refit_tails=tails,
        refit=refit_settings(stats, loaded.specs, recipe.learn.gradient_weight),
        batch_tokens=wanted.batch_tokens,
        threads=recipe.threads,
        device=recipe.main_device,
    )


def first_part(exam: Exam, part: int) -> int:
    """Say after how many examples a hopeless candidate is given up.

    Args:
        exam: The selection split.
        part: What the recipe asks for.

    Returns:
        Examples; at most half of them where a judge grades, which then sees only candidates that hold on that half.
    """
    count = len(exam.prompts)
    return min(part, max(count // 2, 1)) if is_judged(exam) else min(part, count)


def refit_prompts(
    loaded: LoadedModel, calibration: Sequence[list[int]], exam: Exam, task: Task, recipe: Recipe
) -> tuple[list[int], list[list[list[int]]]]:
    """Collect what refit runs: prompts, and where the model writes its answers, these too.

    Args:
        loaded: Dense model.
        calibration: Token ids of the calibration prompts.
        exam: Any exam of the task; says when an answer is complete.
        task: The task.
        recipe: Number of prompts, tokens of a batch.

    Returns:
        ``(prefix that all share, batches of the rest)``.
    """
    wanted = recipe.search
    prompts = list(itertools.islice(_within(calibration, REFIT_TOKENS), wanted.refit_prompts))
    if task.writes:
        dense = TorchTextModel(loaded.model, recipe.main_device)
        answered = with_answers(dense, prompts, task.max_new_tokens, exam.ended, wanted.batch_tokens)
        prompts = [list(item.ids) for item in answered]
    return prefix_and_tails(prompts, wanted.batch_tokens)


def _within(prompts: Sequence[list[int]], tokens: int) -> Iterator[list[int]]:
    """Take the first prompts, to at most so many tokens, what all begin with counted once."""
    shared = shared_prefix(prompts)
    for number, prompt in enumerate(prompts):
        tokens -= len(prompt) - shared
        if tokens < 0 and number >= _LEAST_PROMPTS:
            return
        yield prompt


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
