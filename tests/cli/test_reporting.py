"""`report`: one page that needs nothing but itself, as a parser, a reader of CSV and a browser see it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import Result

from lifelong_edit.eval.reports.drawing import DARK, LIGHT, Palette
from lifelong_edit.timeline import Timeline
from tests.cli.conftest import fact_line

Run = Callable[..., Result]
VOID = {"meta", "link", "br", "img", "hr", "input"}
EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Elements in order, and what stands where it must not."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.wrong: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        self.wrong += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag == "a":
            self.links.append(given.get("href") or "")
        for name in ("src", "href", "xlink:href", "data", "action"):
            if tag != "a" and given.get(name):
                self.loaded.append(str(given[name]))
        self.wrong += [f"{tag} has {name}" for name in given if name.startswith("on")]
        if tag == "th" and given.get("scope") not in ("row", "col"):
            self.wrong.append("a heading of a table without scope")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.wrong.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def eventful(run: Run, _template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a contradiction of a fact whose text is not meant well, and a reconsolidation; only to be read."""
    store = Path(shutil.copytree(_template, tmp_path_factory.mktemp("eventful") / "store"))
    more = store.with_name("more.jsonl")
    more.write_text("\n".join([fact_line(0, target=f"Rome {EVIL}"), fact_line(7, subject=EVIL)]) + "\n")
    assert run("stream", more, "--store", store, "--reconsolidate", "every:1").exit_code == 0
    return store


@pytest.fixture(scope="module")
def text(run: Run, eventful: Path) -> str:
    """Its page."""
    return made(run, eventful.parent, eventful)


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def made(run: Run, folder: Path, *arguments: object) -> str:
    out = folder / "report.html"
    said = run("report", *arguments, "-o", out)
    assert said.exit_code == 0, said.output
    assert said.stdout == "" and f"{out}: " in said.stderr
    return out.read_text(encoding="utf-8")


def test_the_page_is_whole_and_loads_nothing(text: str) -> None:
    page = Page(text)
    assert not page.wrong
    assert len(set(page.ids)) == len(page.ids)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    # What is used within an SVG stands in it; nothing comes from elsewhere.
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.loaded), page.loaded
    assert "script" not in page.tags and "iframe" not in page.tags
    headings = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings.count(1) == 1 and headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert page.tags.count("table") == page.tags.count("caption") > 5
    assert page.tags.count("svg") == page.tags.count("figure") == page.tags.count("desc")
    assert {"main", "header", "footer", "nav"} <= set(page.tags)


def test_what_a_fact_says_is_text(text: str) -> None:
    assert EVIL not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert EVIL in Page(text).text


def test_its_figures_are_those_of_the_store(run: Run, eventful: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    page = Page(made(run, tmp_path, eventful, "--figures", figures))
    with Timeline.open(eventful, read_only=True) as timeline:
        asked = timeline.measurements("head")
        last = asked[-1].share("efficacy")
        live = len(timeline.facts())
        lost = [o for o in asked[-1].outcomes if o.measure == "efficacy" and not o.generated]
    told = {row[0]: row[1] for row in read_csv(figures / "figures.csv")}
    assert told["facts in force"] == str(live) and told["facts taught"] == "8" and told["reconsolidations"] in "01"
    assert told["efficacy"].startswith(f"{last:.0%} (")
    assert f"{last:.0%} (" in page.text
    head, *retention = read_csv(figures / "retention.csv")
    assert [int(row[head.index("step")]) for row in retention] == [m.step for m in asked][1:]
    assert len(lost) >= len(read_csv(figures / "lost.csv")) - 1
    names = {path.stem for path in figures.glob("*.svg")}
    assert {"retention", "forgetting-curve", "cohorts-1", "matrix-1", "locality", "perplexity"} <= names
    for name in names:
        ET.parse(figures / f"{name}.svg")
        assert "var(--" not in (figures / f"{name}.svg").read_text(encoding="utf-8")
        assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(read_csv(figures / f"{name}.csv")) > 1


def test_several_stores_side_by_side(run: Run, store: Path, eventful: Path, empty_store: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(store, tmp_path / "elsewhere" / "store"))
    page = Page(made(run, tmp_path, eventful, other, empty_store))
    assert not page.wrong
    assert "elsewhere/store" in page.text and "Nothing has been edited into this store yet." in page.text
    twice = run("report", store, store, "-o", tmp_path / "no.html")
    assert twice.exit_code == 2 and "found a store twice" in twice.stderr and not (tmp_path / "no.html").exists()


def test_a_store_that_was_never_asked_says_how_to(run: Run, empty_store: Path, news: Path, tmp_path: Path) -> None:
    assert run("stream", news, "--store", empty_store, "--measure", 0).exit_code == 0
    before = made(run, tmp_path, empty_store)
    assert "report --evaluate" in before and "was not asked" in before
    after = Page(made(run, tmp_path, empty_store, "--evaluate"))
    assert not after.wrong and "The forgetting matrix" in after.text
    with Timeline.open(empty_store, read_only=True) as timeline:
        assert [m.sample for m in timeline.measurements()] == [None]


def test_it_follows_the_line_of_the_head(run: Run, store: Path, tmp_path: Path) -> None:
    assert run("rollback", 1, "--store", store).exit_code == 0
    figures = tmp_path / "figures"
    made(run, tmp_path, store, "--figures", figures)
    head, *rows = read_csv(figures / "matrix-1.csv")
    assert {row[head.index("asked after step")] for row in rows} == {"1"}


def test_the_default_store_and_bad_places(run: Run, store: Path, tmp_path: Path) -> None:
    assert run("report", "-o", tmp_path / "a.html", env={"LIFELONG_STORE": str(store)}).exit_code == 0
    for place in (tmp_path / "none" / "a.html", store):
        said = run("report", store, "-o", place)
        assert said.exit_code == 2, said.output
    assert run("report", tmp_path / "nothing", "-o", tmp_path / "b.html").exit_code == 4
    assert not (tmp_path / "b.html").exists()


def test_cells_that_a_spreadsheet_would_run_are_text() -> None:
    from lifelong_edit.eval.reports.drawing import Table
    from lifelong_edit.eval.reports.page import as_csv

    assert as_csv(Table(("a",), [("=1+1",), ("@x",), (-1,), ("fine, isn't it",)])).decode().splitlines() == [
        "a", "'=1+1", "'@x", "-1", '"fine, isn\'t it"',
    ]  # fmt: skip


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("palette", "page", "card"), [(LIGHT, "#ffffff", "#f6f7f9"), (DARK, "#15181c", "#1e2227")])
def test_contrast(palette: Palette, page: str, card: str, text: str) -> None:
    """WCAG 2.2, AA: 4.5 for text, 3 for lines of a figure; on the colours that the page has."""
    assert f"--page:{page}; --card:{card}" in text
    for colour in (palette.ink, palette.faint):
        assert _contrast(colour, page) >= 4.5 and _contrast(colour, card) >= 4.5
    assert all(_contrast(colour, page) >= 3 for colour in palette.series)
    rule = next(line for line in text.splitlines() if f"--page:{page}; --card:{card}" in line)
    for name in ("good", "fair", "bad", "link"):
        colour = re.search(rf"--{name}:(#\w+)", rule)
        assert colour and _contrast(colour[1], card) >= 4.5, name


# -- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0"),
)
# Set into a copy, which may run scripts: what stands out on the right in a frame as wide as a phone.
PROBE = """
<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, svg, .skip"))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + "." + e.className);
  const found = {width: innerWidth, page: document.documentElement.scrollWidth, wide,
    figures: [...document.querySelectorAll("figure svg")].map(e => Math.round(e.getBoundingClientRect().width)),
    ink: getComputedStyle(document.body).color, paper: getComputedStyle(document.body).backgroundColor};
  parent.postMessage(JSON.stringify(found), "*");
});
</script>
"""
FRAME = """
<!doctype html><meta charset="utf-8"><body>
<script>addEventListener("message", event => { document.body.dataset.found = event.data; });</script>
<iframe src="probe.html" style="width: %dpx; height: 800px; border: 0"></iframe>
"""


def browse(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *QUIET, profile, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
class TestBrowser:
    """As Chromium draws it."""

    @pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1280, False)])
    def test_nothing_stands_out_and_colours_follow(self, text: str, tmp_path: Path, width: int, dark: bool) -> None:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        (tmp_path / "probe.html").write_text(page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
        (tmp_path / "frame.html").write_text(FRAME % width, encoding="utf-8")
        scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
        size = ["--window-size=1400,900", "--virtual-time-budget=5000", "--dump-dom"]
        said = browse(tmp_path, *scheme, *size, (tmp_path / "frame.html").as_uri())
        match = re.search(r'data-found="([^"]*)"', said.stdout)
        assert match, said.stderr
        found = json.loads(match[1].replace("&quot;", '"'))
        assert found["width"] == width and found["wide"] == [] and found["page"] <= width
        assert found["figures"] and all(200 < drawn <= 576 for drawn in found["figures"])
        light = sum(map(int, re.findall(r"\d+", found["paper"])[:3])) > 382
        assert light is not dark

    def test_it_opens_without_a_complaint_and_prints(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "report.html").write_text(text, encoding="utf-8")
        page, shot, paper = (tmp_path / "report.html").as_uri(), tmp_path / "shot.png", tmp_path / "paper.pdf"
        said = browse(tmp_path, f"--screenshot={shot}", "--window-size=1200,3000", page)
        assert "CONSOLE" not in said.stderr
        assert shot.stat().st_size > 50_000
        browse(tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer", page)
        assert paper.read_bytes().startswith(b"%PDF") and b"/Count " in paper.read_bytes()
