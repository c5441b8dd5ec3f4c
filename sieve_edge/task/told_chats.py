"""Labels in the answer to a chat, which no server goes on with."""

from collections.abc import Mapping, Sequence

from sieve_edge.task.told import OUTSIDE, Found, Told, next_token


def chat_scores(steps: Sequence[Told], labels: Sequence[str]) -> list[Found]:
    """Find labels in the answer to a chat: only whole tokens count.

    Args:
        steps: The answer's positions.
        labels: Answers.

    Returns:
        Of each label the log-likelihood of the token that tells it apart, given what all begin with; what all end with
        may be missing from it.
    """
    rest = [label.rstrip() for label in labels]
    ending = min(_common_ending(rest), *(len(label.lstrip()) - 1 for label in rest))
    for step in steps:
        found = [_in_chat(label, step.top, ending) for label in rest]
        written = step.token.strip()
        alike = written and all(label.lstrip().startswith(written) for label in rest)
        if not alike or not all(each.outside for each in found):
            return found
        rest = [label.lstrip().removeprefix(written) for label in rest]
    return [Found(OUTSIDE, True)] * len(labels)


def _in_chat(label: str, top: Mapping[str, float], ending: int) -> Found:
    found = next_token(label, top)
    if found is None:
        return Found(OUTSIDE, True)
    whole = len(label) - found[0] <= ending
    return Found(found[1], False, True) if whole else Found(OUTSIDE, True, True)


def _common_ending(labels: Sequence[str]) -> int:
    size = 0
    while size < min(map(len, labels)) and len({label[len(label) - size - 1] for label in labels}) == 1:
        size += 1
    return size
