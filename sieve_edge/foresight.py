"""How many answers a build will show its judge, said before it costs anything, and refused where that is too many."""

from collections.abc import Sequence

from sieve_edge.errors import JudgeError
from sieve_edge.run import Run


def foreseen_answers(run: Run, verbs: Sequence[str]) -> dict[str, int]:
    """Foresee how many answers the judge will be shown; those that it knows cost no call.

    Args:
        run: The build.
        verbs: Stages that are still to run.

    Returns:
        Stage -> answers, of the stages that show it any. The search's is an estimate, see ``foreseen_plans``; what is
        asked again after faults is not in it.
    """
    sizes = {name: len(examples) for name, examples in run.splits.items()}
    selection, unseen = sizes["selection"], sizes["test"] + sizes["transfer"]
    found = {"calibrate": selection, "fuse": selection, "validate": 2 * unseen}
    if "search" in verbs:
        from sieve_edge.search import foreseen_plans

        found["search"] = foreseen_plans(run.recipe) * selection
    if run.recipe.tune.method != "none":
        found["tune"] = (3 if run.recipe.tune.compare_dense else 2) * (selection + unseen)
    if run.recipe.vocabulary.keep != "all":
        found["vocabulary"] = selection + 2 * unseen
    return {verb: found[verb] for verb in verbs if verb in found}


def tell_judging(run: Run, verbs: Sequence[str]) -> None:
    """Say how many answers the judge will be shown, also to a user who asked for quiet: calls cost money.

    That its key and library are there is found out too.

    Args:
        run: The build.
        verbs: Stages that are still to run.

    Raises:
        JudgeError: If they are more than the build may make calls: it would end in the middle of its search.
    """
    if run.judge is None:
        return
    judge, foreseen = run.judge.settings, foreseen_answers(run, verbs)
    count = sum(foreseen.values())
    if not count:
        return
    parts = ", ".join(f"{verb} {answers}" for verb, answers in foreseen.items())
    strategy = run.recipe.search.strategy
    if count > judge.max_calls:
        guided = "" if strategy == "guided" or "search" not in foreseen else " or --set search.strategy=guided"
        raise JudgeError(
            f"judge {judge.model}: this build is foreseen to show it {count} answers ({parts}), judge.max_calls is "
            f"{judge.max_calls}; raise the task's judge.max_calls, or take fewer splits.selection examples{guided}"
        )
    run.judge.check()
    made = f", {run.judge.calls} of them made before" if run.judge.calls else ""
    run.progress.warn(
        f"  judge {judge.model} is foreseen to be shown {count} answers ({parts}); answers that it knows cost no call, "
        f"and this build makes no more than {judge.max_calls} calls in all{made}"
    )
