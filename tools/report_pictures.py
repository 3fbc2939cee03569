"""Pictures of a report's plots, as SVG files for documents.

    python tools/report_pictures.py REPORT.html DIRECTORY PLOT...

PLOT is an element of the report: answer, decode-0, concurrency-ttft_s, links, ... Writes
DIRECTORY/PLOT.svg, with the patterns and looks that the page has for all plots.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def picture(report: str, plot: str) -> str:
    """The SVG of a plot, alone. Raises ValueError where the page does not have it."""
    found = re.search(
        rf'<svg id="{re.escape(plot)}" class="plot" viewBox="([^"]*)".*?</svg>', report
    )
    looks = re.search(r'<style id="plots">.*?</style>', report, re.DOTALL)
    patterns = re.search(r"<defs>.*?</defs>", report, re.DOTALL)
    if not (found and looks and patterns):
        raise ValueError(f"the page has no plot {plot}")
    left, top, width, height = map(float, found[1].split())
    box = f'viewBox="{left - 6:g} {top - 6:g} {width + 12:g} {height + 12:g}"'
    ground = f'<rect x="{left - 6:g}" y="{top - 6:g}" width="100%" height="100%" fill="#fff"/>'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" {box}>'
    inside = found[0][found[0].index(">") + 1 :]
    return f"{start}\n{looks[0]}\n{patterns[0]}\n{ground}\n{inside}\n"


def main(report: str, directory: str, *plots: str) -> None:
    text = Path(report).read_text(encoding="utf-8")
    for name in plots:
        file = Path(directory, f"{name}.svg")
        file.write_text(picture(text, name), encoding="utf-8")
        print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
