"""What every export format promises: each behaviour for each format of the registry, on a model with random weights.

A format comes into this grid with its line in `FORMATS`, and one in `READERS`: how to ask what it wrote. Beside them
runs `shifts`, a format as a newcomer would write it, which is a function and no more.
"""

from __future__ import annotations

import json
import resource
import runpy
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lifelong_edit.bench import Bench, State
from lifelong_edit.cli import PROGRAM, cli
from lifelong_edit.editors.contract import Format, Rule
from lifelong_edit.editors.registry import PLAIN, RULES, rule_of
from lifelong_edit.errors import LifelongEditError, UsageError
from lifelong_edit.export.formats import FORMATS, WANTED, Form, export
from lifelong_edit.models import LoadedModel, Shifts, fingerprint_of, generate_greedy, load_model
from lifelong_edit.timeline import Timeline
from tests.contracts.editing import ROWS, Row

QUESTIONS = ["The capital of France is", "Ada Lovelace was born", "Kenya's currency is"]


# -- how to ask what was written


def _transformers(out: Path) -> list[list[int]]:
    return _said(AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out))


def _said(model: Any, tokenizer: Any) -> list[list[int]]:
    said = []
    for question in QUESTIONS:
        ids = tokenizer(question, return_tensors="pt")
        new = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
        said.append([token for token in new if token != tokenizer.eos_token_id])
    return said


def _base(out: Path) -> str:
    return str(json.loads((out / "lifelong_edit.json").read_text(encoding="utf-8"))["base"]["source"])


def _delta(out: Path) -> list[list[int]]:
    """By the script that is shipped with it, which knows nothing of this package."""
    runpy.run_path(str(out / "apply.py"))["main"](_base(out), str(out.with_suffix(".whole")), out)
    return _transformers(out.with_suffix(".whole"))


def _peft(out: Path) -> list[list[int]]:
    base = AutoModelForCausalLM.from_pretrained(_base(out))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft about a name of transformers
        model = PeftModel.from_pretrained(base, out)
    return _said(model, AutoTokenizer.from_pretrained(_base(out)))


def write_shifts(loaded: LoadedModel, shifts: Mapping[str, Tensor], folder: Path) -> None:
    """The newcomer's format: ΔW as it is, in a folder of the folder."""
    (folder / "inner").mkdir()
    save_file(dict(shifts), folder / "inner" / "shifts.safetensors")


def _shifts(out: Path) -> list[list[int]]:
    with load_model(_base(out)).at(load_file(out / "inner" / "shifts.safetensors")) as loaded:
        return generate_greedy(loaded, QUESTIONS, 6)


def _gguf(out: Path) -> list[list[int]]:
    return generate_greedy(load_model(str(out)), QUESTIONS, 6)


READERS: dict[str, Callable[[Path], list[list[int]]]] = {
    "transformers": _transformers,
    "delta": _delta,
    "peft": _peft,
    "gguf": _gguf,
    "shifts": _shifts,
}
"""What the model in an exported folder answers to `QUESTIONS`: new tokens up to its end of text, 6 at most."""


def write_half(loaded: LoadedModel, shifts: Mapping[str, Tensor], folder: Path) -> None:
    """A format whose writer is stopped in the middle, as by Ctrl-C."""
    (folder / "half").write_text("begun")
    raise KeyboardInterrupt


# -- what is written


@pytest.fixture(params=[*FORMATS, "shifts"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Format:
    """A format of the registry, or the newcomer's, put there with a line."""
    if request.param not in FORMATS:
        monkeypatch.setitem(FORMATS, request.param, Form(f"{__name__}:write_shifts", "ΔW alone"))
    return cast(Format, request.param)


@pytest.fixture(scope="module")
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(str(tiny_gpt2))


@pytest.fixture(scope="module")
def shifts(loaded: LoadedModel) -> Shifts:
    """A state whose answers are not the base's."""
    generator = torch.Generator().manual_seed(5)
    return Shifts({m.name: torch.randn(m.d_in, m.d_out, generator=generator) * 0.2 for m in loaded.modules})


class Silenced:
    """An overlay with a hook: what was the likeliest token is the least likely one."""

    def __init__(self, shifts: Mapping[str, Tensor]) -> None:
        self.shifts = shifts

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """The hook, for as long as the context lasts."""
        handle = model.get_submodule("transformer.ln_f").register_forward_hook(lambda *given: -given[2])
        try:
            yield
        finally:
            handle.remove()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Within the context no file can grow beyond some bytes, as on a full disk; Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_it_answers_as_in_process(kind: Format, loaded: LoadedModel, shifts: Shifts, tmp_path: Path) -> None:
    """Whatever the model stands at while it is written, and it is left there."""
    with loaded.at({}):
        base = generate_greedy(loaded, QUESTIONS, 6)
    with loaded.at(shifts):
        said = generate_greedy(loaded, QUESTIONS, 6)
        export(kind, loaded, Shifts({}), tmp_path / "base")
        assert generate_greedy(loaded, QUESTIONS, 6) == said
    export(kind, loaded, shifts, tmp_path / "edited")
    assert fingerprint_of(loaded.model) == loaded.fingerprint
    assert READERS[kind](tmp_path / "edited") == said != base
    assert READERS[kind](tmp_path / "base") == base


def test_it_says_where_it_comes_from(kind: Format, loaded: LoadedModel, shifts: Shifts, tmp_path: Path) -> None:
    export(kind, loaded, shifts, tmp_path / "out", provenance={"step": 7, "weights_digest": "ab"})
    stated = json.loads((tmp_path / "out" / "lifelong_edit.json").read_text(encoding="utf-8"))
    assert (stated["step"], stated["weights_digest"]) == (7, "ab")
    assert stated["base"] == {"source": loaded.source, "fingerprint": loaded.fingerprint}
    assert stated["fingerprint"] == fingerprint_of(loaded.edited_copy(shifts.shifts)) != loaded.fingerprint
    assert stated["dtype"] == "float32" and stated["modules"] == [m.name for m in loaded.modules]
    assert stated["versions"]["torch"] == torch.__version__


def test_the_same_state_gives_the_same_bytes(kind: Format, loaded: LoadedModel, shifts: Shifts, tmp_path: Path) -> None:
    for name in "ab":
        export(kind, loaded, shifts, tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# -- where it is written


def test_an_earlier_export_is_replaced_by_force_alone_and_nothing_else_ever(
    kind: Format, loaded: LoadedModel, shifts: Shifts, tmp_path: Path
) -> None:
    out, thesis = tmp_path / "out", tmp_path / "thesis"
    export(kind, loaded, Shifts({}), out)
    (out / "of an earlier release").write_text("")
    before = contents(out)
    with pytest.raises(UsageError, match="--force"):
        export(kind, loaded, shifts, out)
    assert contents(out) == before
    export(kind, loaded, shifts, out, force=True)
    assert contents(out) != before and "of an earlier release" not in names(out)
    thesis.mkdir()
    (thesis / "chapter").write_text("one")
    with pytest.raises(UsageError, match="never replaced"):
        export(kind, loaded, shifts, thesis, force=True)
    with pytest.raises(UsageError, match="is a file"):
        export(kind, loaded, shifts, thesis / "chapter", force=True)
    assert contents(thesis) == {"chapter": b"one"} and names(tmp_path) == ["out", "thesis"]
    (tmp_path / "empty").mkdir()
    export(kind, loaded, shifts, tmp_path / "empty")
    assert contents(tmp_path / "empty") == contents(out)


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("stopped", ["in the middle", "at the end", "by a full disk"])
def test_a_failure_leaves_nothing_and_what_was_there_stays(
    kind: Format, stopped: str, exists: bool, loaded: LoadedModel, shifts: Shifts, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place, out = tmp_path / "place", tmp_path / "place" / "out"
    export(kind, loaded, shifts, tmp_path / "sized")
    if exists:
        export(kind, loaded, Shifts({}), out)
        before = contents(out)
    if stopped == "in the middle":
        monkeypatch.setitem(FORMATS, kind, replace(FORMATS[kind], home=f"{__name__}:write_half"))
        with pytest.raises(KeyboardInterrupt):
            export(kind, loaded, shifts, out, force=True)
    elif stopped == "at the end":
        with pytest.raises(TypeError):  # no JSON: found only when all else is written
            export(kind, loaded, shifts, out, force=True, provenance={"step": object()})
    else:
        largest = max(map(len, contents(tmp_path / "sized").values()))
        with pytest.raises(LifelongEditError, match="what was there is as it was"), files_of_at_most(largest // 2):
            export(kind, loaded, shifts, out, force=True)
    assert names(place) == (["out"] if exists else [])
    assert not exists or contents(out) == before


def test_a_state_with_hooks_is_refused(kind: Format, loaded: LoadedModel, shifts: Shifts, tmp_path: Path) -> None:
    """Also one that shifts weights beside: they alone would be another model."""
    for overlay in (Silenced({}), Silenced(shifts.shifts)):
        with pytest.raises(UsageError, match=r"by hooks \(Silenced\), expected shifted weights alone") as refused:
            export(kind, loaded, overlay, tmp_path / "inner" / "out", force=True)
        assert "\n" not in str(refused.value) and not names(tmp_path)


# -- from a store


class Hooked:
    """As much of an editor as a look at a state needs."""

    def overlay(self, state: State) -> Silenced:
        """Hooks, and no weights."""
        return Silenced({})


def make(bench: Bench) -> Hooked:
    """The rule at work: this module is its home."""
    return Hooked()


Declare = Callable[..., Rule]


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Declare:
    """Changes the declaration of the store's rule, for the time of a test."""

    def declare(**changes: Any) -> Rule:
        rule = replace(rule_of(PLAIN), **changes)
        monkeypatch.setattr(sys.modules[f"lifelong_edit.editors.{PLAIN}"], "RULE", rule)
        return rule

    return declare


@pytest.fixture
def store(kept: Callable[[Row, str], Path], tmp_path: Path) -> Path:
    """A store with two steps."""
    return shutil.copytree(kept(next(row for row in ROWS if row.name == PLAIN), "lived"), tmp_path / "store")


def run(kind: str, out: Path, store: Path, *more: str) -> Any:
    arguments = ["export", "--format", kind, "--out", str(out), "--store", str(store), *more]
    return CliRunner().invoke(cli, arguments, prog_name=PROGRAM)


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_writes_it_with_the_step_and_its_digests(
    form: Format, store: Path, declared: Declare, tmp_path: Path
) -> None:
    declared(exports=frozenset(FORMATS))
    for step, more in ((2, ()), (1, ("--at", "1", "--force"))):
        result = run(form, tmp_path / "out", store, *more)
        assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "out"), result.output
        stated = json.loads((tmp_path / "out" / "lifelong_edit.json").read_text(encoding="utf-8"))
        with Timeline.open(store, read_only=True) as timeline:
            record, live = timeline.show(step), len(timeline.at(step).facts())
        expected = {"step": step, "weights_digest": record.weights_digest, "live_digest": record.live_digest}
        assert stated.items() >= {**expected, "live_facts": live}.items()


@pytest.mark.parametrize("form", FORMATS)
def test_a_rule_that_does_not_declare_it_is_refused_before_anything_is_loaded(
    form: Format, store: Path, declared: Declare, tmp_path: Path
) -> None:
    for others, said in ((set(FORMATS) - {form}, f"cannot be exported as {form}; it can"), (set(), "in any format")):
        declared(exports=frozenset(others))
        result = run(form, tmp_path / "out", store)
        assert result.exit_code == 2 and said in result.output
        assert "loading" not in result.output and not (tmp_path / "out").exists()


def test_a_rule_of_hooks_is_refused_whatever_it_declares(store: Path, declared: Declare, tmp_path: Path) -> None:
    """What it answers in its store is no base model's; no model and no folder that says otherwise leaves it."""
    declared(exports=frozenset(FORMATS), home=__name__)
    with Timeline.open(store, read_only=True) as timeline:
        assert timeline.at(2).ask(QUESTIONS[0]) != _of_base(timeline, QUESTIONS[0])
        for look in (timeline.at(2), timeline):
            with pytest.raises(UsageError, match="by hooks"):
                look.model()
    for form in FORMATS:
        result = run(form, tmp_path / "out", store)
        assert result.exit_code == 2 and "by hooks (Silenced)" in result.output, result.output
        assert names(tmp_path) == ["store"]


def _of_base(timeline: Timeline, question: str) -> str:
    loaded = timeline.bench().loaded
    return str(loaded.tokenizer.decode(generate_greedy(loaded, [question], 20)[0]))


# -- what is declared


def test_every_format_is_told_declared_and_read() -> None:
    """By the type of its name, by a rule at least, by `--help`, and by this grid."""
    assert set(get_args(Format)) == FORMATS.keys() == READERS.keys() - {"shifts"}
    assert all(form.takes <= WANTED.keys() for form in FORMATS.values())
    assert frozenset().union(*(rule_of(name).exports for name in RULES)) == FORMATS.keys()
    said = " ".join(CliRunner().invoke(cli, ["export", "--help"], prog_name=PROGRAM).output.split())
    assert f"--format [{'|'.join(FORMATS)}]" in said
    assert all(f"`{name}`: {form.says}" in said for name, form in FORMATS.items())


def test_a_rule_exports_nothing_unless_it_says_so() -> None:
    assert next(field for field in fields(Rule) if field.name == "exports").default == frozenset()


def test_what_a_format_does_not_take_is_refused_before_anything_is_loaded(store: Path, tmp_path: Path) -> None:
    for kind, option in (("delta", "--dtype=float16"), ("transformers", "--rank=3"), ("peft", "--max-shard-size=1GB")):
        result = run(kind, tmp_path / "out", store, option)
        assert result.exit_code == 2 and option.partition("=")[0] in result.output, result.output
        assert "loading" not in result.output and not (tmp_path / "out").exists()


def test_a_format_without_dtypes_refuses_one_before_anything_is_loaded(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "shifts", Form(f"{__name__}:write_shifts", "ΔW alone"))
        with pytest.raises(UsageError, match="--dtype bfloat16, but this format"):
            export(cast(Format, "shifts"), loaded, Shifts({}), tmp_path / "out", dtype="bfloat16")
