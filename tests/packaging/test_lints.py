"""Rules that hold for every source file, read off the syntax trees. A rule is one test, which lists all offenders."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

import pytest

from tests.packaging.test_source import REPOSITORY, SOURCES, TREES, imports

MAX_FUNCTION_LINES = 70
LIGHT = ("lifelong_edit.stores", "lifelong_edit.policies")
HEAVY = {"torch", "transformers", "sklearn", "scipy", "datasets"}


def offenders(rule: Callable[[str, ast.Module], Iterator[str]]) -> list[str]:
    """What breaks a rule anywhere in the package. rule: findings in a module, by its name and tree."""
    found = [(module, finding) for module, tree in TREES.items() for finding in rule(module, tree)]
    return [f"{SOURCES[module].relative_to(REPOSITORY)}: {finding}" for module, finding in found]


def heavy(module: str, tree: ast.Module) -> Iterator[str]:
    """Imports of what is slow to start, where starting has to be quick."""
    if module.startswith(LIGHT):
        yield from (f"line {line}: {name}" for name, line in imports(module, tree) if name.split(".")[0] in HEAVY)


def test_stores_and_policies_import_no_torch() -> None:
    """So that `log`, `status` and `show` start in a fraction of a second."""
    assert not offenders(heavy)


def test_the_rule_of_torch_can_fail() -> None:
    tree = ast.parse("import numpy\ndef f():\n    import torch.nn\n")
    assert list(heavy("lifelong_edit.stores", tree)) == ["line 3: torch.nn"]
    assert not list(heavy("lifelong_edit.timeline", tree))


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


def test_nothing_is_pickled() -> None:
    assert not offenders(lambda _, tree: forbidden(tree))


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


def undocumented(module: str, tree: ast.Module) -> Iterator[str]:
    """Public names without a docstring, and a module that says not what it is."""
    if tree.body and not ast.get_docstring(tree):
        yield "the module says not what it is"
    for node in public_definitions(tree):
        if not ast.get_docstring(node) and not overloads(node):
            yield f"line {node.lineno}: {node.name} has no docstring"


def test_public_names_have_docstrings() -> None:
    assert not offenders(undocumented)


def test_the_docstring_rule_can_fail() -> None:
    text = "class Store:\n    def close(self): ...\n    def _sync(self): ...\n\n@overload\ndef f(): ...\n"
    names = ["the module says not what it is", "line 1: Store has no docstring", "line 2: close has no docstring"]
    assert list(undocumented("m", ast.parse(text))) == names


def too_long(module: str, tree: ast.Module) -> Iterator[str]:
    """Functions that do not fit a screen or two."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {lines} lines, more than {MAX_FUNCTION_LINES}"


def test_functions_can_be_read_in_a_sitting() -> None:
    assert not offenders(too_long)


def test_the_length_rule_can_fail() -> None:
    lines = "".join(f"    x{number} = 0\n" for number in range(MAX_FUNCTION_LINES))
    assert list(too_long("m", ast.parse("def f():\n" + lines)))
    assert not list(too_long("m", ast.parse("def f():\n" + lines.split("\n", 1)[1])))


def derived_from_reports(module: str, tree: ast.Module) -> Iterator[str]:
    """Where something is looked up in what a step found as it is made for people to read."""
    if module.startswith("lifelong_edit.cli"):
        return
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Subscript | ast.Attribute) else None
        looked_up = isinstance(node, ast.Subscript) or getattr(node, "attr", "") in ("get", "items", "keys", "values")
        if looked_up and isinstance(value, ast.Attribute) and value.attr == "report":
            yield f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}"


def test_nothing_is_derived_from_reports() -> None:
    """What is, has a field of its own in the step's record."""
    assert not offenders(derived_from_reports)


@pytest.mark.parametrize("text", ["step.report['gate']", "history.record(3).report.get('gate', {})"])
def test_the_report_rule_can_fail(text: str) -> None:
    assert list(derived_from_reports("lifelong_edit.timeline.history", ast.parse(text)))


def moved_by_hand(module: str, tree: ast.Module) -> Iterator[str]:
    """Edited weights written, or hooks registered, elsewhere than where a model is made to stand at a state."""
    if module in ("lifelong_edit.models.loaded", "lifelong_edit.models.overlay"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("set_shifts", "_stand_at", "_weight"):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_a_model_changes_by_an_overlay_alone() -> None:
    """`LoadedModel.at` is the only way, so that nobody has to remember to undo anything."""
    assert not offenders(moved_by_hand)


def test_the_rule_of_overlays_can_fail() -> None:
    tree = ast.parse("loaded.set_shifts({})")
    assert list(moved_by_hand("lifelong_edit.timeline.solving", tree))


OF_A_KIND = {
    "encode",
    "encode_prompt",
    "encode_whole",
    "whole_span",
    "end_ids",
    "generate",
    "generate_from_ids",
    "generate_greedy",
    "head_input",
}
OF_A_KIND |= {"last_position", "masked_positions", "pad", "separator", "special_front", "subject_span"}
"""Functions of `models` that are right for one kind of model: tasks are made of them."""
WRITES_ON = {("lifelong_edit.eval.metrics.fluency", "generate"), ("lifelong_edit.serving.states", "end_ids")}
"""Measured or served of causal models alone, and says so by `tasks.require_causal`."""


def past_the_task(module: str, tree: ast.Module) -> Iterator[str]:
    """Where a model is asked, or its text encoded, as if all models were of one kind."""
    if module.startswith(("lifelong_edit.models", "lifelong_edit.tasks", "lifelong_edit.atlas")):
        return
    for name, line in imports(module, tree):
        if name.startswith(("lifelong_edit.tasks.", "lifelong_edit.models.generation")) and not name.endswith(
            ".contract"
        ):
            yield f"line {line}: {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lifelong_edit.models"):
            names = {alias.name for alias in node.names} & OF_A_KIND
            yield from (f"line {node.lineno}: {name}" for name in sorted(names) if (module, name) not in WRITES_ON)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("models") and node.attr in OF_A_KIND:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and any(keyword.arg == "input_ids" for keyword in node.keywords):
            yield f"line {node.lineno}: {ast.unparse(node.func)}(input_ids=…)"


def test_models_are_asked_through_their_task() -> None:
    """So that another kind of question is a folder in `tasks`, and nothing else has to be found and mended."""
    assert not offenders(past_the_task)


@pytest.mark.parametrize(
    "text",
    [
        "from lifelong_edit.tasks.causal.verdicts import MARGIN",
        "def f():\n    from lifelong_edit.models import LoadedModel, generate_greedy",
        "from lifelong_edit.models.encoding import encode",
        "from lifelong_edit.models import generation",
        "from lifelong_edit import models\nmodels.generate(loaded, prompts, 3)",
        "loaded.model(input_ids=ids, use_cache=False)",
    ],
)
def test_the_rule_of_tasks_can_fail(text: str) -> None:
    assert len(list(past_the_task("lifelong_edit.judging.gate", ast.parse(text)))) == 1
    assert not list(past_the_task("lifelong_edit.tasks.causal.task", ast.parse(text)))


def test_what_is_measured_on_some_models_alone_says_so() -> None:
    for module, _ in WRITES_ON:
        assert any(isinstance(node, ast.Name) and node.id == "require_causal" for node in ast.walk(TREES[module]))
