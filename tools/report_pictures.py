"""Pictures of a report's plots, as SVG, for documents: drawn by Chromium, as readers see them.

    python tools/report_pictures.py REPORT.html DIRECTORY PLOT...

PLOT is an element of the report: load-concurrency, links, phase-0, ... Writes DIRECTORY/PLOT.svg.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

#: What a headless Chromium needs as root, and what keeps it from asking the Internet.
CHROMIUM = (
    "chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
    " --virtual-time-budget=10000"
)
WIDTH, HEIGHT = 820, 360
#: Puts the pictures in place of the page, once all are drawn.
DRAW = """<script>
Promise.all(drawn).then(() => Promise.all(%s.map((id) =>
  Plotly.toImage(id, {format: "svg", width: %d, height: %d}))))
  .then((urls) => { document.body.textContent = "PICTURES" + JSON.stringify(urls) + "END"; });
</script></body>"""


def pictures(report: str, plots: list[str]) -> list[str]:
    """The SVG of each plot. Raises ValueError where the page does not draw them."""
    asked = DRAW % (json.dumps(plots), WIDTH, HEIGHT)
    with tempfile.TemporaryDirectory() as home:
        file = Path(home, "report.html")
        file.write_text(report.replace("</body>", asked), encoding="utf-8")
        words = [*CHROMIUM.split(), f"--user-data-dir={home}/browser", "--dump-dom", file.as_uri()]
        shown = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"PICTURES(\[.*\])END", shown.stdout, re.DOTALL)
    if found is None:
        raise ValueError(f"the page has no plots {', '.join(plots)}")
    return [
        unquote(url.partition(",")[2]) for url in json.loads(found.group(1).replace("&amp;", "&"))
    ]


def main(report: str, directory: str, *plots: str) -> None:
    text = Path(report).read_text(encoding="utf-8")
    for name, picture in zip(plots, pictures(text, list(plots)), strict=True):
        file = Path(directory, f"{name}.svg")
        file.write_text(picture + "\n", encoding="utf-8")
        print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
