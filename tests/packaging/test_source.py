"""Rules that hold for every source file, read off the syntax trees: no exceptions by habit, none by accident."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = {"lifelong_edit": "lifelong_edit", "stores": "lifelong_edit.stores"}
FOLDERS |= {"policies": "lifelong_edit.policies", "eval": "lifelong_edit.eval"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
TABLES = {"lifelong_edit.atlas.phrasings"}  # sentences, not code: may be longer

# Rank of each module, from the bottom layer up; a module imports only from lower ranks, or from its own package.
# A package named here stands for all that is in it, unless a longer name says otherwise.
LAYERS: dict[str, int] = {
    "lifelong_edit.errors": 0,
    "lifelong_edit.atomic": 0,
    "lifelong_edit.settings": 1,
    "lifelong_edit.stores.digests": 1,  # a digest is what it is for every layer; it knows nothing but bytes
    "lifelong_edit.stores.tensors": 1,  # arrays to bytes and back
    "lifelong_edit.stores.entries": 2,  # so are keys of facts
    "lifelong_edit.facts": 2,
    "lifelong_edit.models": 2,
    "lifelong_edit.models.devices": 2,
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
    "lifelong_edit.timeline": 6,
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
    name = module
    while name not in LAYERS or (name == "lifelong_edit" and module != name):
        name, dot, _ = name.rpartition(".")
        if not dot:
            raise AssertionError(f"{module} stands in no layer: add it to LAYERS (and think where it belongs)")
    return name


@pytest.mark.parametrize("module", SOURCES)
def test_layers(module: str) -> None:
    """cli → reports → scheduler → timeline → stores … → editors → solver … → models, facts, never leftwards."""
    place = home(module)
    for imported, line in imports(module, TREES[module]):
        if imported.split(".")[0] != "lifelong_edit" or imported == "lifelong_edit":
            continue
        other = home(imported)
        where = f"{SOURCES[module].relative_to(REPOSITORY)}:{line} imports {imported}"
        assert other == place or LAYERS[other] <= LAYERS[place], f"{where}, which stands above it"
        assert {place, other} != set(STRANGERS), f"{where}: these two know nothing of each other"


def test_the_layer_rule_can_fail() -> None:
    """A store that imports the timeline is caught, and so is one that does so inside a function."""
    tree = ast.parse("def f():\n    from lifelong_edit.timeline import Timeline\n")
    ((imported, line),) = imports("lifelong_edit.stores", tree)
    assert LAYERS[home(imported)] > LAYERS[home("lifelong_edit.stores")]
    assert line == 2


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith(STRANGERS)])
def test_stores_and_policies_import_no_torch(module: str) -> None:
    """So that `log`, `status` and `show` start in a fraction of a second."""
    heavy = {"torch", "transformers", "sklearn", "scipy", "datasets"}
    found = [f"{name} (line {line})" for name, line in imports(module, TREES[module]) if name.split(".")[0] in heavy]
    assert not found


def forbidden(tree: ast.AST) -> Iterator[str]:
    """Ways to run what a file says: pickles in any dress, and code that comes with a model."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if any(name.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib", "shelve"} for name in names):
                yield f"line {node.lineno}: a pickle module"
        elif isinstance(node, ast.Attribute) and node.attr == "load" and ast.unparse(node.value) == "torch":
            yield f"line {node.lineno}: torch.load"
        elif isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "trust_remote_code"}:
            literal = node.value.value if isinstance(node.value, ast.Constant) else None
            # What is handed through from the caller is the caller's decision; allow_pickle is nobody's.
            if literal is True or (node.arg == "allow_pickle" and literal is not False):
                yield f"line {node.lineno}: {node.arg}={ast.unparse(node.value)}"


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_is_pickled(module: str) -> None:
    assert not list(forbidden(TREES[module]))


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "np.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=flag)",
        "f(trust_remote_code=True)",
    ],
)
def test_the_pickle_rule_can_fail(text: str) -> None:
    assert list(forbidden(ast.parse(text)))


def derived_from_reports(tree: ast.AST) -> Iterator[str]:
    """Where something is looked up in what a step found as it is made for people to read."""
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Subscript | ast.Attribute) else None
        looked_up = isinstance(node, ast.Subscript) or getattr(node, "attr", "") in ("get", "items", "keys", "values")
        if looked_up and isinstance(value, ast.Attribute) and value.attr == "report":
            yield f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}"


@pytest.mark.parametrize("module", [name for name in SOURCES if not name.startswith("lifelong_edit.cli")])
def test_nothing_is_derived_from_reports(module: str) -> None:
    """What is, has a field of its own in the step's record."""
    assert not list(derived_from_reports(TREES[module]))


@pytest.mark.parametrize("text", ["step.report['gate']", "history.record(3).report.get('gate', {})"])
def test_the_report_rule_can_fail(text: str) -> None:
    assert list(derived_from_reports(ast.parse(text)))


def public_definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions and classes of a module, and the public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
            yield node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and inner.name[0] != "_":
                        yield inner


def overloads(node: ast.AST) -> bool:
    return any("overload" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ()))


@pytest.mark.parametrize("module", SOURCES)
def test_public_names_have_docstrings(module: str) -> None:
    missing = [
        f"{node.name} (line {node.lineno})"
        for node in public_definitions(TREES[module])
        if not ast.get_docstring(node) and not overloads(node)
    ]
    assert not missing
    assert ast.get_docstring(TREES[module]) or not TREES[module].body, "the module says not what it is"


@pytest.mark.parametrize("module", SOURCES)
def test_files_and_functions_can_be_read_in_a_sitting(module: str) -> None:
    lines = len(SOURCES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES or module in TABLES
    long = []
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                long.append(f"{node.name}: {lines} lines")
    assert not long


def test_every_package_is_listed() -> None:
    """pyproject.toml lists the packages by hand, because three of them stand elsewhere than their names say."""
    listed = set(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {module for module, path in SOURCES.items() if path.name == "__init__.py"}
