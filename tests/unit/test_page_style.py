"""The page's colours can be read, in light and dark."""

import re

import pytest

from tests.markup import CSS, contrast, style_colours

TEXT, GRAPHICS = 4.5, 3.0
PAIRS = [
    *((name, ground, TEXT) for name in ("ink", "muted", "link") for ground in ("page", "panel")),
    *((name, "page", TEXT) for name in ("good", "bad")),
    ("on-bar", "pruned", TEXT),
    ("on-bar", "dense", TEXT),
    *((name, "page", GRAPHICS) for name in ("dense", "pruned")),
]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("front", "ground", "least"), PAIRS)
def test_colours_have_contrast(theme, front, ground, least):
    colours = style_colours(CSS.read_text(encoding="utf-8"))[theme]
    assert contrast(colours[front], colours[ground]) >= least


def test_heat_map_numbers_have_contrast_and_steps_darken():
    css = CSS.read_text(encoding="utf-8")
    grounds = re.findall(r"svg \.heat(\d) \{ fill: (#[0-9a-f]{6})", css)
    texts = dict(re.findall(r"svg \.heat(\d)-text \{ fill: (#[0-9a-f]{6})", css))
    assert [number for number, _ in grounds] == list("012345")
    for number, ground in grounds:
        assert contrast(texts[number], ground) >= TEXT
    darkness = [contrast("#ffffff", ground) for _, ground in grounds]
    assert darkness == sorted(darkness)


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)


def test_dark_replaces_every_colour_of_light():
    css = CSS.read_text(encoding="utf-8")
    blocks = re.findall(r":root\s*\{(.*?)\}", css, re.DOTALL)
    names = [set(re.findall(r"--([\w-]+):\s*#", block)) for block in blocks]
    assert names[0] == names[1]
    used = set(re.findall(r"var\(--([\w-]+)", css))
    assert used - {"swatch"} <= names[0]
