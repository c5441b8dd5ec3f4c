"""Looks at an HTML page without a browser: what a browser would forgive, a reader by ear or keyboard may not."""

import itertools
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from sieve_edge.files import digest, read_json, write_json

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
OUTSIDE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
ADDRESSES = ("href", "src", "srcset", "action", "data", "poster", "xlink:href")


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parents: tuple[str, ...]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """Every element of a page, and what is wrong with its tags."""

    elements: list[Element] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__(convert_charrefs=True)
        self._open: list[Element] = []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.problems.append(f"<{tag}> has an attribute twice: {names}")
        element = Element(tag, {name: value or "" for name, value in attrs}, tuple(item.tag for item in self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        if not self._open or self._open[-1].tag != tag:
            self.problems.append(f"</{tag}> at {self.getpos()} closes {[item.tag for item in self._open[-2:]]}")
            return
        self._open.pop()

    def handle_data(self, data):
        for element in self._open:
            element.text += data

    def of(self, tag):
        return [item for item in self.elements if item.tag == tag]

    def by_id(self, name):
        return next(item for item in self.elements if item.attributes.get("id") == name)


def read_page(text: str) -> Page:
    """Parse a page."""
    page = Page()
    page.feed(text)
    page.close()
    page.problems += [f"<{item.tag}> is not closed" for item in page._open]
    return page


def check_page(text: str) -> Page:
    """Parse a page and assert what every page of ours must be."""
    assert text.startswith("<!DOCTYPE html>")
    page = read_page(text)
    assert page.problems == []
    ids = [item.attributes["id"] for item in page.elements if "id" in item.attributes]
    assert sorted(ids) == sorted(set(ids)), "identifiers are unique"
    assert page.of("html")[0].attributes["lang"] == "en"
    assert page.of("title")[0].text.strip()
    _check_names(page, set(ids))
    _check_controls(page)
    _check_order(page)
    for item in page.elements:
        for name in ADDRESSES:
            assert not OUTSIDE.match(item.attributes.get(name, "")), f"{item} asks the network"
    styles = "".join(item.text for item in page.of("style"))
    assert not re.search(r"@import|url\(", styles)
    assert "default-src 'none'" in page.of("meta")[2].attributes["content"]
    return page


def _check_names(page: Page, ids: set[str]) -> None:
    """Whatever is not text has a text; whatever refers to something refers to something that is there."""
    for item in page.of("img"):
        assert item.attributes.get("alt"), item
    drawings = page.of("svg")
    assert drawings
    for item in drawings:
        assert item.attributes["role"] == "img"
        for name in item.attributes["aria-labelledby"].split():
            assert page.by_id(name).text.strip(), name
    for item in page.elements:
        for attribute in ("aria-labelledby", "aria-describedby", "for"):
            for name in item.attributes.get(attribute, "").split():
                assert name in ids, name
        if item.tag == "a" and item.attributes["href"].startswith("#"):
            assert item.attributes["href"][1:] in ids
        if item.attributes.get("role") == "region":
            assert item.attributes["aria-label"]
    for item in page.of("th"):
        assert item.attributes["scope"] in ("row", "col")


def _check_controls(page: Page) -> None:
    labelled = {item.attributes["for"] for item in page.of("label")}
    for item in page.of("select"):
        assert item.attributes["id"] in labelled


def _check_order(page: Page) -> None:
    """The keyboard goes through the page as it is read, skip link first; headings do not skip a level."""
    for item in page.elements:
        assert int(item.attributes.get("tabindex", 0)) <= 0
    assert page.of("a")[0].attributes["class"] == "skip"
    levels = [int(item.tag[1]) for item in page.elements if re.fullmatch(r"h[1-6]", item.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for item in page.elements:
        if "scroll" in item.attributes.get("class", "").split():
            assert item.attributes["tabindex"] == "0", "what scrolls must be reached by keyboard"


def style_colours(css: str) -> dict[str, dict[str, str]]:
    """Read the colours of the style sheet: theme -> name -> #rrggbb."""
    blocks = re.findall(r":root\s*\{(.*?)\}", css, re.DOTALL)
    found = [dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", block)) for block in blocks]
    return {"light": found[0], "dark": {**found[0], **found[1]}}


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, by WCAG 2.2."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


CSS = Path(__file__).parent.parent / "sieve_edge" / "report" / "templates" / "page.css"


def forget(folder, verb, name):
    """Make a stage's artifact that of an earlier version, which did not write a file."""
    file = folder / verb / "manifest.json"
    manifest = read_json(file)
    del manifest["outputs"][name]
    write_json(file, manifest)
    (folder / verb / name).unlink()
    return digest(manifest["outputs"])
