"""What imports what, read off the syntax trees: layers without exceptions by habit, none by accident."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = {"lifelong_edit": "lifelong_edit", "stores": "lifelong_edit.stores"}
FOLDERS |= {"policies": "lifelong_edit.policies", "eval": "lifelong_edit.eval"}

# Rank of each module, from the bottom layer up; a module imports only from lower ranks, or from its own package.
# A package named here stands for all that is in it, unless a longer name says otherwise.
LAYERS: dict[str, int] = {
    "lifelong_edit.errors": 0,
    "lifelong_edit.atomic": 0,
    "lifelong_edit.settings": 1,
    "lifelong_edit.stores.digests": 1,  # a digest is what it is for every layer; it knows nothing but bytes
    "lifelong_edit.facts": 2,
    "lifelong_edit.models": 2,
    "lifelong_edit.numerics.devices": 2,
    "lifelong_edit.atlas": 2,  # data files, and where they lie
    "lifelong_edit.eval": 3,  # the metrics; what reads timelines is named apart
    "lifelong_edit.numerics.grams": 3,
    "lifelong_edit.tracing.rows": 3,
    "lifelong_edit.tracing.trace": 3,
    "lifelong_edit.numerics.solver": 3,
    "lifelong_edit.tracing.preservation": 3,
    "lifelong_edit.tracing.derived": 3,
    "lifelong_edit.numerics.textgram": 3,
    "lifelong_edit.editors.malmen.network": 3,
    "lifelong_edit.numerics.forecast": 0,  # numbers in, numbers out
    "lifelong_edit.numerics.logistic": 0,
    "lifelong_edit.cli.trackers": 3,  # figures in, trackers out
    "lifelong_edit.export.whole": 3,  # models in, folders out
    "lifelong_edit.editors": 4,
    "lifelong_edit.editors.ridge.batch": 5,
    "lifelong_edit.editors.ridge.conflictkeys": 5,
    "lifelong_edit.judging.forgetting": 5,
    "lifelong_edit.training.scorers": 5,
    "lifelong_edit.judging.gate": 5,
    "lifelong_edit.judging.guard": 5,
    "lifelong_edit.editors.ridge.together": 5,
    "lifelong_edit.judging.staleness": 5,
    "lifelong_edit.judging.retracted": 5,
    "lifelong_edit.training.choosing": 5,
    "lifelong_edit.training.choosing_modules": 5,
    "lifelong_edit.training.episodes": 5,
    "lifelong_edit.training.run": 5,
    "lifelong_edit.stores": 5,
    "lifelong_edit.policies": 5,
    "lifelong_edit.timeline": 6,  # and the modules that it is cut into, timeline_*
    "lifelong_edit.scheduler": 7,
    "lifelong_edit.eval.reports.questions": 8,
    "lifelong_edit.eval.reports.evaluated": 8,
    "lifelong_edit.eval.reports.evaluation": 8,
    "lifelong_edit.eval.reports.sampling": 8,
    "lifelong_edit.eval.reports.matrix": 8,
    "lifelong_edit.eval.reports.survival": 8,
    "lifelong_edit.eval.reports.data": 8,
    "lifelong_edit.eval.reports.drawing": 8,
    "lifelong_edit.eval.reports.figures": 8,
    "lifelong_edit.eval.reports.page": 8,
    "lifelong_edit.eval.reports.comparison": 8,
    "lifelong_edit.cli": 9,
    "lifelong_edit.__main__": 10,
    "lifelong_edit": 10,  # the public surface: names from everywhere
}
# Within one rank these still know nothing of each other.
STRANGERS = ("lifelong_edit.stores", "lifelong_edit.policies")


def sources() -> dict[str, Path]:
    """Dotted module name to file, for the whole package as it is installed."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


SOURCES = sources()
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in SOURCES.items()}


def absolute(module: str, node: ast.ImportFrom) -> str:
    """The dotted name that a `from … import` imports from, relative ones resolved."""
    if not node.level:
        return node.module or ""
    package = module.split(".")
    if SOURCES[module].name != "__init__.py":
        package = package[:-1]
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, *([node.module] if node.module else [])])


def imports(module: str, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every import, those in functions too; `from package import module` names the module.

    Imports for type checkers alone count as well: who needs the type knows the layer.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in SOURCES else base), node.lineno


def home(module: str) -> str:
    """The longest name in LAYERS that the module is, or is in."""
    name = "lifelong_edit.timeline" if module.startswith("lifelong_edit.timeline_") else module
    while name not in LAYERS or (name == "lifelong_edit" and module != name):
        name, dot, _ = name.rpartition(".")
        if not dot:
            raise AssertionError(f"{module} stands in no layer: add it to LAYERS (and think where it belongs)")
    return name


def offences(module: str) -> Iterator[str]:
    """Imports of a module that its layer forbids."""
    place = home(module)
    for imported, line in imports(module, TREES[module]):
        if imported.split(".")[0] != "lifelong_edit" or imported == "lifelong_edit":
            continue
        other = home(imported)
        where = f"{SOURCES[module].relative_to(REPOSITORY)}:{line} imports {imported}"
        if other != place and LAYERS[other] > LAYERS[place]:
            yield f"{where}, which stands above it"
        if {place, other} == set(STRANGERS):
            yield f"{where}: these two know nothing of each other"


def test_layers() -> None:
    """cli → reports → scheduler → timeline → stores … → editors → solver … → models, facts, never leftwards."""
    found = [offence for module in SOURCES for offence in offences(module)]
    assert not found, "\n".join(found)


def test_the_layer_rule_can_fail() -> None:
    """A store that imports the timeline is caught, and so is one that does so inside a function."""
    tree = ast.parse("def f():\n    from lifelong_edit.timeline import Timeline\n")
    ((imported, line),) = imports("lifelong_edit.stores", tree)
    assert LAYERS[home(imported)] > LAYERS[home("lifelong_edit.stores")]
    assert line == 2


def test_every_package_is_listed() -> None:
    """pyproject.toml lists the packages by hand, because three of them stand elsewhere than their names say."""
    listed = set(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {module for module, path in SOURCES.items() if path.name == "__init__.py"}
