"""The documentation site: built without a warning, complete, and readable without a network."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
NEIGHBOURS = {"author", "canonical", "copyright", "index", "next", "prev", "search"}
"""What a <link> may name without the browser's fetching it."""
PACKAGES = (
    *("lifelong_edit.facts", "lifelong_edit.models", "lifelong_edit.stores", "lifelong_edit.policies"),
    "lifelong_edit.tasks",
)
MODULES = ("lifelong_edit.bench", "lifelong_edit.editors.contract", "lifelong_edit.editors.registry")
"""Public modules of packages that export nothing themselves."""
OF_THE_REPORT = {"data", "drawing", "figures", "page"}
"""Modules of `eval/reports` that draw the page of `lifelong-edit report`, and are for nobody else."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, with warnings as errors."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", out / "doctrees", DOCS, out / "html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


class Loads(HTMLParser):
    """What a browser fetches for a page without being asked: not where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") not in {
            "author",
            "copyright",
            "next",
            "prev",
            "index",
            "search",
            "canonical",
        }:
            self.found.append(given.get("href") or "")
        self.found += [value for name in ("src", "srcset", "data", "poster") if (value := given.get(name))]


def is_remote(url: str) -> bool:
    return bool(re.match(r"(?:[a-z]+:)?//", url.strip(), re.IGNORECASE))


def test_what_loads_is_seen() -> None:
    page = '<link rel="stylesheet" href="https://a.org/x.css"><a href="https://b.example"></a><script src="//c.d/e">'
    assert [url for url in Loads(page).found if is_remote(url)] == ["https://a.org/x.css", "//c.d/e"]


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """No script, style, font or picture of another host, in pages and in style sheets."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    remote = {page.name: odd for page in pages if (odd := [u for u in Loads(page.read_text()).found if is_remote(u)])}
    assert not remote
    for sheet in site.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", sheet.read_text(encoding="utf-8"))
        assert not [url for url in urls if is_remote(url)], sheet.name


def test_formulas_are_mathml(site: Path) -> None:
    """Every formula of the page is an element that browsers show by themselves; none is left as LaTeX."""
    source = (DOCS / "mathematics.md").read_text(encoding="utf-8")
    built = (site / "mathematics.html").read_text(encoding="utf-8")
    displayed = source.count("```math\n")
    assert displayed > 20
    assert built.count('<div class="formula"><math') == displayed
    assert built.count('display="inline"') > displayed
    text = html.unescape(re.sub(r"<(script|style|pre)\b.*?</\1>|<[^>]+>", "", built, flags=re.DOTALL))
    assert not re.findall(r"\$[^$\n]+\$|\\[a-z]{2,}", text)


def test_an_unknown_command_of_latex_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS / "_extensions")
    mathml = import_module("math_as_mathml")
    assert "<mtable" in mathml.mathml(r"\begin{aligned} a &= b \\ c &= d \end{aligned}", display=True)
    with pytest.raises(mathml.FormulaError, match=r"\\nosuch, unknown"):
        mathml.mathml(r"a \nosuch b", display=False)
    with pytest.raises(mathml.FormulaError, match="no well-formed MathML"):
        mathml.mathml(r"\begin{nosuch} a &= b \end{nosuch}", display=True)


def test_inline_formulas_hold_in_plain_markdown_too() -> None:
    """Markdown takes the backslash from what is no letter (`\\,`, `\\|`) before a repository's host sees a formula."""
    for page in sorted(DOCS.rglob("*.md")):
        text = re.sub(
            r"^```.*?^```\s*$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
        )
        odd = [formula for formula in re.findall(r"\$([^$\n]+)\$", text) if re.search(r"\\[^A-Za-z]|\|", formula)]
        assert not odd, f"{page.name}: {odd}; write \\lVert for \\|, \\lbrace for \\{{, or a ```math block"


def inventory(site: Path) -> set[str]:
    """All names that the API reference defines (the site's objects.inv)."""
    data = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split(" ")[0] for line in zlib.decompress(data).decode().splitlines() if " py:" in line}


def test_public_names_are_in_the_reference(site: Path) -> None:
    """Classes and functions; a new module has to be named in docs/api."""
    named = inventory(site)
    expected = set()
    for package in map(import_module, PACKAGES):
        public = {name: getattr(package, name) for name in package.__all__}
        expected |= {f"{package.__name__}.{n}" for n, v in public.items() if isclass(v) or isfunction(v)}
    for module in map(import_module, MODULES):
        own = {n: v for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__}
        expected |= {f"{module.__name__}.{n}" for n, v in own.items() if n[0] != "_" and (isclass(v) or isfunction(v))}
    errors = import_module("lifelong_edit.errors")
    expected |= {f"lifelong_edit.errors.{name}" for name in vars(errors) if name.endswith("Error")}
    expected |= {"lifelong_edit.Timeline", "lifelong_edit.Timeline.rollback"}
    expected |= {"lifelong_edit.settings.StoreSettings.seed", "lifelong_edit.editors.ridge.settings.RidgeSettings.eta"}
    evaluation = {path for path in (REPOSITORY / "eval").glob("*/[!_]*.py") if path.stem not in OF_THE_REPORT}
    assert len(evaluation) > 10
    expected |= {f"lifelong_edit.eval.{path.parent.name}.{path.stem}" for path in evaluation}
    missing = sorted(expected - named)
    assert not missing, f"{', '.join(missing)}: in no page of docs/api; give the module a section there"


def test_a_name_means_what_it_means_in_its_module(site: Path) -> None:
    """`Timeline.apply` takes batches that no page defines, and a type of Python's is no field of a record."""
    assert {"lifelong_edit.eval.reports.questions.Batch", "lifelong_edit.stores.Batch"} <= inventory(site)
    links = re.findall(r'href="([^"]*)"', (site / "api" / "timeline.html").read_text(encoding="utf-8"))
    assert not [link for link in links if link.endswith((".Batch", ".bytes"))]
    assert "facts.html#lifelong_edit.facts.Fact" in links


def test_signatures_are_understood(site: Path) -> None:
    """One that Sphinx cannot parse stands there as a string, its names unshortened (`~lifelong_edit…`)."""
    odd = {
        page.name for page in (site / "api").glob("*.html") if re.search(r"~\w+\.", page.read_text(encoding="utf-8"))
    }
    assert not odd


def test_links_to_the_root_stay_in_the_site(site: Path) -> None:
    """SECURITY.md and others stand beside docs/ in the repository, and are pages here."""
    built = (site / "safe-keeping.html").read_text(encoding="utf-8")
    assert re.search(r'href="security\.html"[^>]*><span[^>]*>SECURITY\.md', built)
    assert "What a store tells its reader" in (site / "security.html").read_text(encoding="utf-8")
    assert 'href="purging.html"' in (site / "security.html").read_text(encoding="utf-8")
