"""The generated parts of README.md are what the code and the kept results say."""

from pathlib import Path

from benchmarks.readme import render

README = Path(__file__).parent.parent.parent / "README.md"


def test_readme_is_current():
    text = README.read_text(encoding="utf-8")
    assert render(text) == text, "run: python -m benchmarks.readme"
