"""Fixtures that tests of what a build leaves behind share."""

import pytest

from benchmarks.pictures import find_chromium
from tests.chromium import NO_CHROMIUM, open_tab


@pytest.fixture(scope="module")
def tab():
    """A tab of headless Chromium."""
    if find_chromium() is None:
        pytest.skip(NO_CHROMIUM)
    with open_tab() as opened:
        yield opened
