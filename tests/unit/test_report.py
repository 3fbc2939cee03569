"""The report in a real browser: it opens without a network, fits a phone, and runs nothing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.report import HOSTILE, measured, story

from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.report import plots
from orchestrator.performance.report.answer import answer
from orchestrator.performance.report.page import page
from orchestrator.performance.report.story import Story
from orchestrator.performance.results.bench import RunState

TOOL = Path(__file__).resolve().parents[2] / "tools/report_pictures.py"
#: What a headless Chromium needs as root, and what keeps it from asking the Internet.
CHROMIUM = (
    "chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
    " --enable-logging=stderr"
)
#: Opens all that is folded, and writes down what does not fit: how far one could scroll sideways,
#: texts of plots beyond the screen, and texts on each other.
LOOK = """<script>
document.querySelectorAll("details").forEach((each) => { each.open = true; });
const whole = document.documentElement;
const wider = whole.scrollWidth - whole.clientWidth;
const found = { width: innerWidth, wider, cut: [], over: [] };
for (const plot of document.querySelectorAll("svg.plot")) {
  const texts = [...plot.querySelectorAll("text")].map(
    (each) => [each.textContent, each.getBoundingClientRect()]);
  texts.forEach(([text, box], n) => {
    if (box.left < -1 || box.right > innerWidth + 1) found.cut.push(text);
    for (const [other, its] of texts.slice(n + 1))
      if (box.width && its.width && box.left < its.right - 1 && its.left < box.right - 1
          && box.top < its.bottom - 3 && its.top < box.bottom - 3) found.over.push([text, other]);
  });
}
parent.document.body.dataset.found = JSON.stringify(found);
</script></body>"""


def chromium(text: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    assert shutil.which("chromium"), "tools/setup.sh --tests installs it"
    file = home / "report.html"
    file.write_text(text, encoding="utf-8")
    argv = [*CHROMIUM.split(), f"--user-data-dir={home / 'browser'}", *words, file.as_uri()]
    return subprocess.run(argv, capture_output=True, text=True, timeout=170, check=True)


def browse(text: str, home: Path, *words: str) -> tuple[str, list[str]]:
    """The page's document as the browser has it, and what it wrote to the console."""
    done = chromium(text, home, "--dump-dom", "--virtual-time-budget=10000", *words)
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


def unlocked(text: str) -> str:
    """The page without its policy, so that a script in it would run."""
    policy = re.search(r"<meta http-equiv=.*>\n", text)
    assert policy and "default-src 'none'" in policy[0] and "script" not in policy[0]
    return text.replace(policy[0], "")


def looked(text: str, home: Path, width: int) -> dict[str, Any]:
    """What does not fit at this width: in a frame, since no window is as narrow as a phone."""
    inside = html.escape(unlocked(text).replace("</body>", LOOK))
    frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{inside}"></iframe>'
    document, console = browse(f"<!DOCTYPE html><body>{frame}</body>", home)
    assert console == []
    found = re.search(r'data-found="([^"]*)"', document)
    assert found, document[:500]
    return dict(json.loads(html.unescape(found[1])))


def many(count: int) -> Story:
    """A story of so many loads, each explained."""
    whole = story()
    loads = [measured(n, 2 ** (n % 6), None) for n in range(count)]
    loads = [
        replace(each, workload=replace(each.workload, name=f"a load of our own, number {n}"))
        for n, each in enumerate(loads)
    ]
    phases = tuple(
        replace(phase, workload=each.workload.name) for each in loads for phase in whole.phases
    )
    run = replace(whole.run, measured=tuple(loads))
    first = answer(run, phases, None, (), Parallelism(2))
    return replace(whole, run=run, phases=phases, answer=first)


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_nothing_is_cut_or_covered_and_no_page_scrolls_sideways(tmp_path: Path, width: int) -> None:
    found = looked(page(story()), tmp_path, width)
    assert found == {"width": width, "wider": 0, "cut": [], "over": []}


def test_a_page_that_is_too_wide_is_seen_by_this_test(tmp_path: Path) -> None:
    wide = page(story()).replace("<h1>", '<p style="width:900px">wide</p><h1>')
    found = looked(wide.replace("text-anchor", "x"), tmp_path, 390)
    assert found["wider"] > 0 and found["over"]


def test_two_hundred_loads_fit_a_phone_and_two_megabytes(tmp_path: Path) -> None:
    text = page(many(200))
    assert len(text.encode()) < 2 << 20
    assert all(f"a load of our own, number {n}" in text for n in range(200))
    found = looked(text, tmp_path, 390)
    assert found == {"width": 390, "wider": 0, "cut": [], "over": []}


@pytest.mark.parametrize("count", [0, 1])
def test_a_run_without_probes_is_a_report_that_says_what_is_not_known(
    tmp_path: Path, count: int
) -> None:
    run = replace(story().run, series=(), measured=story().run.measured[:count])
    first = answer(run, (), None, (), Parallelism(2), "There are no probes. Run: orchestrate probe")
    text = page(Story(run, ("Measured, not explained.",), answer=first))
    assert text.count("Not known") == 3 and "Measured, not explained." in text
    assert ("Run: orchestrate probe" in text) == (count == 1)
    assert looked(text, tmp_path, 390)["wider"] == 0


def test_names_with_markup_are_text_everywhere(tmp_path: Path) -> None:
    """Names of a model, loads, nodes, networks and causes, on a page that would run scripts."""
    whole = story()
    assert whole.probes
    load = whole.run.measured[0]
    named = replace(load, workload=replace(load.workload, name=HOSTILE))
    links = tuple(replace(each, a=HOSTILE, network=HOSTILE) for each in whole.probes.links)
    phases = tuple(replace(each, workload=HOSTILE, why=HOSTILE) for each in whole.phases)
    series = tuple(replace(each, node=HOSTILE, unit=HOSTILE) for each in whole.run.series)
    run = replace(whole.run, measured=(named, *whole.run.measured[1:]), series=series)
    text = page(
        replace(
            whole,
            run=replace(run, state=RunState.MARKED, note=HOSTILE, warnings=(HOSTILE,)),
            probes=replace(whole.probes, links=links),
            phases=phases,
            stages=((HOSTILE, "compute1"),),
            verdict=(HOSTILE,),
            compared=(HOSTILE,),
            answer=answer(run, phases, None, (), Parallelism(2)),
        )
    )
    assert not re.search(r"(?:src|href|action)\s*=", text) and "<script" not in text
    document, console = browse(unlocked(text), tmp_path)
    assert console == [] and "data-broken" not in document
    assert document.count("&lt;/script&gt;&lt;script&gt;document.body") > 10
    broken = unlocked(text).replace("&lt;", "<").replace("&gt;", ">")
    assert "data-broken" in browse(broken, tmp_path)[0]  # it would be seen


def test_what_is_folded_is_printed(tmp_path: Path) -> None:
    def pages(text: str) -> int:
        plain = text.replace('fill="url(', 'fill="x(')  # patterns make a page slow to print
        chromium(plain, tmp_path, f"--print-to-pdf={tmp_path}/report.pdf")
        return len(re.findall(rb"/Type /Page\b", (tmp_path / "report.pdf").read_bytes()))

    whole = page(many(24))
    folded = whole.replace("details::details-content", ".nosuch")
    assert pages(whole) > pages(folded) > 0


def test_no_two_parts_are_told_apart_by_colour_alone() -> None:
    looks = list(plots.PARTS.values())
    assert len({colour for colour, _ in looks}) == len({path for _, path in looks}) == len(looks)
    drawn = plots.bars("x", [plots.Bar("load", {"host": 1.0, "memory": 0.2}, 2.0, 1.9, 2.1)])
    assert f"url(#{plots.style('host')})" in drawn and ">host</text>" in drawn
    assert "<title>load, memory: 200 ms</title>" in drawn and ">unexplained</text>" in drawn


def test_a_run_that_is_not_complete_says_so_first() -> None:
    whole = story()
    run = replace(whole.run, state=RunState.MARKED, note="compute1 was lost after 12 s")
    text = page(replace(whole, run=run))
    assert "compute1 was lost after 12 s" in text[: text.index('id="answer"')]
    assert "kept apart" not in page(whole)


def test_every_figure_says_where_it_is_from() -> None:
    text = page(story())
    for section in text.split("<section>")[1:]:
        caption = re.search(r"<figcaption>(.+?)</figcaption>", section)
        assert caption and re.search("easured|model|probes", caption[1]), section[:80]
    assert text.count("<small>From: ") >= 2
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles == ["Where the time goes", "Latency against load", "Links",
                      "A request across the nodes", "Details"]  # fmt: skip


def ends(drawn: str) -> list[tuple[float, float]]:
    """The left and right ends of a plot's parts."""
    found = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)
    return [(float(x), float(x) + float(width)) for x, width in found]


def test_parts_end_at_what_was_measured_or_beyond_it_where_the_forecast_is_longer() -> None:
    short, long = (
        ends(plots.bars("x", [plots.Bar("a", {"host": 0.010}, whole, whole, whole)], unit=0.020))
        for whole in (0.016, 0.004)
    )
    full = (plots.WIDTH - 8) / 0.020
    assert [end for _, end in short] == pytest.approx([full * 0.010 - 1, full * 0.016 - 1], abs=0.2)
    assert [end for _, end in long] == pytest.approx([full * 0.010 - 1], abs=0.2)


def test_a_step_is_drawn_on_the_nodes_where_it_is_spent() -> None:
    text = page(replace(story(), stages=(("compute0",), ("compute1",))))
    step = text[text.index('id="step-decode"') :]
    tips = re.findall(r"<title>(compute\d|between the nodes), ([a-z ]+): ([\d.]+) ms", step)
    assert ("compute0", "memory", "2") in tips and ("compute1", "memory", "2") in tips
    assert ("between the nodes", "link latency", "3") in tips


def test_links_of_one_pair_do_not_hide_each_other_and_slow_ones_are_dashed() -> None:
    whole = story()
    assert whole.probes
    drawn = plots.cables("links", whole.probes.links)
    lines = re.findall(r'<path class="(line[^"]*)" d="([^"]*)"', drawn)
    assert len({line for _, line in lines}) == 3
    assert [kind for kind, _ in lines] == ["line dash", "line dash", "line"]


def test_pictures_of_plots_for_documents(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(page(story()), encoding="utf-8")

    def pictures(*names: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, TOOL, report, tmp_path, *names],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    assert pictures("links", "answer").returncode == 0
    picture = (tmp_path / "links.svg").read_text()
    assert picture.startswith("<svg xmlns") and "compute1" in picture and "<pattern" in picture
    assert "no plot nosuch" in pictures("nosuch").stderr


def test_the_first_screen_is_three_answers_and_a_picture() -> None:
    text = page(story())
    first = text[text.index('id="answer"') : text.index("</section>")]
    for asked in ("What limits?", "What to change?", "Does clustering help?"):
        assert f"<dt>{asked}</dt>" in first
    assert "12 ms of 20 ms (19 to 21.6) per output token, load 1" in first
    assert '<svg id="answer" class="plot"' in first
