"""What imports what, read off the syntax trees: layers without exceptions by habit, none by accident."""

from __future__ import annotations

import ast
import importlib.util
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = {"lifelong_edit": "lifelong_edit", "stores": "lifelong_edit.stores"}
FOLDERS |= {"policies": "lifelong_edit.policies", "eval": "lifelong_edit.eval"}

# The rooms of the house, from the ground up. A module imports from its own room and from rooms below, never upwards;
# and no two modules import each other, by whatever way round. docs/architecture.md says what each is for.
ROOMS = (
    "errors",
    "atomic",
    "tracked",
    "settings",
    "world",
    "cache",
    "facts",
    "stores",
    "numerics",
    "policies",
    "atlas",
    "models",
    "tasks",
    "eval.metrics",
    "tracing",
    "bench",
    "editors",
    "judging",
    "training",
    "timeline",
    "export",
    "serving",
    "scheduler",
    "planning",
    "eval.reports",
    "cli",
    "__main__",
)
PACKAGE = "lifelong_edit"
SURFACE = {PACKAGE, "lifelong_edit.eval"}  # names from everywhere, imported when they are asked for; and no code at all


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


def room(module: str) -> str:
    """The room that a module stands in. Raises AssertionError for one without a room."""
    name = module.removeprefix(f"{PACKAGE}.")
    found = [room for room in ROOMS if name == room or name.startswith(f"{room}.")]
    assert found, f"{module} stands in no room: add it to ROOMS (and think where it belongs)"
    return found[0]


def edges() -> dict[str, dict[str, int]]:
    """Of each module the package's modules that it imports, with the line."""
    return {
        module: {name: line for name, line in imports(module, tree) if name in SOURCES and name != module}
        for module, tree in TREES.items()
    }


def upwards(graph: dict[str, dict[str, int]]) -> Iterator[str]:
    """Imports of a room above."""
    for module, found in graph.items():
        for imported, line in found.items():
            if {module, imported} & SURFACE:
                continue
            if ROOMS.index(room(imported)) > ROOMS.index(room(module)):
                yield f"{SOURCES[module].relative_to(REPOSITORY)}:{line} imports {imported}, which stands above it"


def circles(graph: dict[str, dict[str, int]]) -> list[list[str]]:
    """Modules that import each other, by whatever way round (strongly connected components of more than one)."""
    try:
        TopologicalSorter({module: set(found) for module, found in graph.items()}).prepare()
    except CycleError as error:
        return [list(error.args[1])]
    return []


def test_imports_lead_downwards() -> None:
    """cli → reports → scheduler → timeline → … → editors → bench → tracing → tasks → models → stores, facts."""
    assert not list(upwards(edges()))


def test_no_two_modules_import_each_other() -> None:
    assert not circles(edges())


def test_the_rules_can_fail() -> None:
    """A store that imports the timeline is caught, in a function too; so is a circle within a room."""
    tree = ast.parse("def f():\n    from lifelong_edit.timeline import Timeline\n")
    assert list(imports("lifelong_edit.stores.log", tree)) == [("lifelong_edit.timeline", 2)]
    assert list(upwards({"lifelong_edit.stores.log": {"lifelong_edit.timeline": 2}}))
    names = {"lifelong_edit.stores.log": {"lifelong_edit.stores.tables": 1}, "lifelong_edit.stores.tables": {}}
    assert not list(upwards(names)) and not circles(names)
    names["lifelong_edit.stores.tables"] = {"lifelong_edit.stores.log": 1}
    assert circles(names)


def test_the_rules_see_what_is_installed() -> None:
    """Three packages stand elsewhere than their names say: the files looked at are those that Python imports."""
    for module, path in SOURCES.items():
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None and Path(spec.origin).samefile(path), module


def test_every_package_is_listed() -> None:
    """pyproject.toml lists the packages by hand, because three of them stand elsewhere than their names say."""
    listed = set(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {module for module, path in SOURCES.items() if path.name == "__init__.py"}
