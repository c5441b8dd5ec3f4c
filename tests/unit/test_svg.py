"""Figures: places, round numbers, and texts that cannot break out."""

import pytest

from sieve_edge.report.svg import Drawing, Scale, padded, ticks
from tests.markup import read_page


def test_scale_maps_ends_and_clips_beyond():
    scale = Scale(10.0, 20.0, 100.0, 0.0)
    assert [scale(value) for value in (10, 15, 20, 99, -5)] == [100.0, 50.0, 0.0, 0.0, 100.0]
    assert Scale(3.0, 3.0, 0.0, 10.0)(3.0) == 5.0


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, ["0.0", "0.5", "1.0"]),
        (0.71, 0.83, ["0.75", "0.80"]),
        (0, 2000, ["0", "500", "1,000", "1,500", "2,000"]),
        (5.0, 5.0, ["5"]),
    ],
)
def test_ticks_are_round_and_inside(low, high, texts):
    found = ticks(low, high)
    assert [text for _, text in found] == texts
    assert all(low <= value <= high for value, _ in found)


def test_padding_leaves_room_even_around_one_value():
    assert padded([2.0, 4.0], 0.5) == (1.0, 5.0)
    low, high = padded([3.0])
    assert low < 3.0 < high
    assert padded([0.0]) == (-1.0, 1.0)


def test_texts_are_escaped():
    drawing = Drawing(10)
    drawing.text(0, 0, "</svg><script>alert(1)</script>")
    drawing.circle(0, 0, 1, "pruned", 'a "tip" & <more>')
    page = read_page(drawing.render("one", "a < b", "c & d"))
    assert page.problems == []
    assert page.of("script") == []
    assert page.by_id("one-title").text == "a < b"
    assert 'a "tip" & <more>' in page.of("circle")[0].text
