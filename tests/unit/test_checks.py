"""What a missed limit is called, where it is printed and in the report."""

import pytest

from sieve_edge.device.checks import told
from sieve_edge.report.tables import checks, verdict


def faster(measured, passed):
    return {"name": "faster", "measured": measured, "limit": 100.0, "unit": "ms", "passed": passed}


@pytest.mark.parametrize("measured", [101.0, 100.0])
def test_a_plan_that_is_not_faster_fails_with_that_word(measured):
    missed = faster(measured, False)
    assert told([missed], False) == f"not faster than dense: time_per_answer_ms {measured:.0f} >= 100 ms"
    assert verdict({"checks": [missed]}) == "Missed: not faster than dense."
    assert checks({"checks": [missed]}).rows[0][0] == "not faster than dense"


def test_what_passed_or_is_not_verified_keeps_its_name():
    size = {"name": "file_size_mib", "measured": 7.0, "limit": 5.0, "unit": "MiB", "passed": False}
    assert told([size], False) == "file_size_mib 7 > 5 MiB"
    assert told([faster(99.0, None)], None) == "faster 99 against 100 ms"
    assert checks({"checks": [faster(99.0, True)]}).rows[0][0] == "faster"
