"""Today's code gives the frozen values."""

import json

import pytest

from tests.golden.make_golden import FILE, values

FROZEN = json.loads(FILE.read_text(encoding="utf-8"))


def test_every_value_is_frozen():
    assert set(values()) == set(FROZEN)


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_value_is_the_frozen_one(name):
    assert list(values()[name]) == pytest.approx(FROZEN[name], rel=1e-7, abs=1e-9)
