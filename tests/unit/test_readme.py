"""The generated parts of README.md and docs/measurements.md are what the code and the kept results say."""

from pathlib import Path

import pytest

from benchmarks.pictures import STYLE, stand_alone
from benchmarks.readme import DOCUMENTS, render
from sieve_edge.report.svg import Drawing

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_generated_parts_are_current(name):
    text = (CHECKOUT / name).read_text(encoding="utf-8")
    assert "<!-- generated " in text
    assert render(text) == text, "run: python -m benchmarks.readme"


def test_a_picture_needs_no_page():
    drawing = Drawing(20)
    drawing.rect(0, 0, 10, 10, "pruned")
    text = stand_alone(str(drawing.render("x", "A title", "What is seen")), STYLE.read_text(encoding="utf-8"))
    assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg" ')
    assert ".pruned { fill: #a83a05; }" in text
    assert "var(--" not in text
    assert 'fill="#ffffff"' in text


def test_pictures_are_there_and_small():
    images = CHECKOUT / "docs" / "images"
    assert (images / "report.png").stat().st_size < 250_000
    assert "var(--" not in (images / "kept.svg").read_text(encoding="utf-8")
