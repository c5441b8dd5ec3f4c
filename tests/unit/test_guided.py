import pytest

from sieve_edge.search.guided import last_rungs


@pytest.mark.parametrize(
    ("start", "limit", "found", "visited"),
    [
        (11, 11, 11, [11, 12]),  # the rung hoped for is the furthest
        (11, 20, 13, [11, 12, 13]),  # on while tries last
        (11, 10, 10, [11, 10]),  # one back
        (11, 9, 9, [11, 10, 9]),
        (11, 6, 5, [11, 10, 9, 7, 5]),  # none in the tries: back until one is good
        (11, -1, -1, [11, 10, 9, 7, 5, 3, 1, 0]),  # none at all
        (0, 0, 0, [0, 1]),
        (19, 20, -1, []),  # nothing left to take away
    ],
)
def test_the_last_rungs_end_at_a_good_one_if_there_is_one(start, limit, found, visited):
    seen = []

    def good(rung):
        seen.append(rung)
        return rung <= limit

    assert last_rungs(start, 19, 3, good) == found
    assert seen == visited
