"""Makes the pictures of README.md from a finished build: ``python -m benchmarks.pictures RUN``.

``report.png`` is the top of the report's page in headless Chromium; ``kept.svg`` is its figure of what was kept of
every matrix, with the page's light colours written into it. The last line is one JSON document.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sieve_edge.report.compare import report_page
from sieve_edge.report.kept import read_kept
from sieve_edge.report.page import bottlenecks, write_page
from sieve_edge.report.plan_figures import heat_figure
from sieve_edge.report.record import RunRecord

ROOT = Path(__file__).parent.parent
STYLE = ROOT / "sieve_edge" / "report" / "templates" / "page.css"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH, HEIGHT = 1000, 1440
"""Pixels of the screenshot: as much of the page as shows the verdict, the stages and the accuracy."""

SECONDS = 120


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished build")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder (default: docs/images)")
    arguments = parser.parse_args()
    record = RunRecord.read(arguments.run)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure = str(heat_figure("kept", read_kept(record.root / "learn", record.plan), bottlenecks(record)))
    drawn = arguments.out / "kept.svg"
    drawn.write_text(stand_alone(figure, STYLE.read_text(encoding="utf-8")), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_page(report_page([record]), page)
        taken = screenshot(page, arguments.out / "report.png")
    sizes = {str(file): file.stat().st_size for file in (taken, drawn)}
    print(json.dumps({"benchmark": "pictures", "run": arguments.run.name, "bytes": sizes}))


def stand_alone(figure: str, style: str) -> str:
    """Make a figure of the page one that needs no page.

    Args:
        figure: The SVG element.
        style: Style sheet of the page.

    Returns:
        An SVG document with its colours inside, on a light background.
    """
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", style.split("}", 1)[0]))
    resolved = re.sub(r"var\(--([\w-]+)\)", lambda name: colours.get(name[1], name[0]), style)
    rules = [f"{of} {{{what}}}" for of, what in re.findall(r"(?<![\w.-])svg (\.?[\w-]+) \{([^}]*)\}", resolved)]
    box = [float(number) for number in re.findall(r'viewBox="([^"]*)"', figure)[0].split()]
    head, body = figure.split(">", 1)
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    size = f' width="{2 * box[2]:.0f}" height="{2 * box[3]:.0f}"'
    ground = f'<rect width="{box[2]:.0f}" height="{box[3]:.0f}" fill="{colours["page"]}"/>'
    title, rest = re.split(r"(?<=</desc>)", body, maxsplit=1)
    return f"{head}{size}>{title}<style>{' '.join(rules)}</style>{ground}{rest}\n"


def find_chromium() -> str | None:
    """Find a Chromium.

    Returns:
        Its path, or None.
    """
    return next((path for path in map(shutil.which, NAMES) if path), None)


def screenshot(page: Path, out: Path) -> Path:
    """Show the top of a page in headless Chromium.

    Args:
        page: HTML file.
        out: PNG file.

    Returns:
        The PNG file.
    """
    chromium = find_chromium()
    if chromium is None:
        sys.exit(f"pictures: none of {', '.join(NAMES)} is installed; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="sieve-edge-chromium-", ignore_cleanup_errors=True) as home:
        subprocess.run(_command(chromium, home, page, out), check=True, capture_output=True, timeout=SECONDS)
    return out


def _command(chromium: str, home: str, page: Path, out: Path) -> Sequence[str]:
    quiet = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    shown = ("--hide-scrollbars", "--force-device-scale-factor=1", f"--window-size={WIDTH},{HEIGHT}")
    return (
        chromium,
        *quiet,
        *shown,
        f"--user-data-dir={home}",
        f"--screenshot={out.resolve()}",
        page.resolve().as_uri(),
    )


if __name__ == "__main__":
    main()
