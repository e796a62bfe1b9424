"""Stores of every editing rule on a tiny GPT-2, each made once and copied."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.numpy import save_file

from lifelong_edit.editors.malmen.blocks import Form
from lifelong_edit.editors.malmen.network import NetworkConfig, NetworkSet
from lifelong_edit.editors.serac.rule import shape_for
from lifelong_edit.editors.serac.settings import SeracSettings
from lifelong_edit.facts import Probe
from lifelong_edit.models import load_model
from lifelong_edit.timeline import Timeline
from tests.contracts.editing import GONE, KEPT, MODULES, ROWS, Row, batch, lenient, placed
from tests.contracts.kinds import KINDS, kept_store
from tests.zoo import Zoo


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small gains nothing from threads, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_network(folder: Path, model: Path, entries: Sequence[str], form: str, unit: float = -1e-3) -> None:
    """An untrained hypernetwork of a form for a model's modules. unit: of `mend`, what its steps begin with."""
    loaded = load_model(str(model), modules=list(entries))
    modules, small = loaded.modules, SeracSettings(rank=4, width=8)
    config = NetworkConfig(
        form=msgspec.convert(form, Form), rank=4, blocks=1,
        modules=tuple(m.name for m in modules), shapes=tuple((m.d_in, m.d_out) for m in modules),
        positions=tuple(m.positions for m in modules),
        serac=shape_for(loaded, small) if form == "serac" else msgspec.UNSET,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = NetworkSet(config).tensors()
    for name, array in tensors.items():  # steps that are not too large for gradients that are normalised
        if form == "mend" and name.endswith("unit"):
            array.fill(unit)
        if form == "rledit" and name.endswith("log_step"):
            array.fill(-5)
        if name.endswith("scope.value"):  # so that questions are near enough to some fact
            array /= 10
    folder.mkdir()
    save_file(tensors, folder / "network.safetensors")
    (folder / "config.json").write_bytes(msgspec.json.encode(config))


@pytest.fixture(scope="session")
def network(zoo: Zoo, tiny_gpt2: Path) -> Callable[[str], Path]:
    """`network(form)`: the folder of an untrained hypernetwork for the tiny GPT-2."""

    def make(folder: Path, form: str) -> None:
        write_network(folder, tiny_gpt2, MODULES, form)

    return lambda form: zoo.keep("network", [str(tiny_gpt2), form, MODULES], lambda folder: make(folder, form))


@pytest.fixture(scope="session", params=ROWS, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    """A rule, in one of its solves."""
    found: Row = request.param
    return found


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of model, as `models.families.Kind` has it."""
    return str(request.param)


@pytest.fixture(scope="session")
def models(tiny_gpt2: Path, tiny_bert: Path, tiny_masked: Path, tiny_t5: Path) -> dict[str, Path]:
    """A tiny model of each kind."""
    return {"causal": tiny_gpt2, "classify": tiny_bert, "masked": tiny_masked, "seq2seq": tiny_t5}


@pytest.fixture(scope="module")
def kind_store(kind: str, zoo: Zoo, models: dict[str, Path], sentences: list[str]) -> Path:
    """A store with one step, of a tiny model of the kind; only to be read."""
    return kept_store(zoo, kind, models, sentences)


Options = dict[str, Any]


@pytest.fixture(scope="session")
def options(tiny_gpt2: Path, sentences: list[str], network: Callable[[str], Path]) -> Callable[[Row], Options]:
    """What `Timeline.create` takes for a store of a row, settings included."""
    preserve = [Probe(prompt=s.rsplit(" ", 1)[0], subject=f"none {i}") for i, s in enumerate(sentences)]
    common = {"model": str(tiny_gpt2), "preserve": preserve, "text": [" ".join(sentences * 20)]}

    def of(row: Row) -> Options:
        given = {"hypernetwork": str(network(row.form))} if "network" in row.rule.needs else {}
        return {**common, **given, "settings": row.settings()}

    return of


Fresh = Callable[[Row], Path]
Kept = Callable[[Row, str], Path]


def beginnings(zoo: Zoo, options: Callable[[Row], Options]) -> Fresh:
    """Of a row its store at step 0, only to be read."""

    def of(row: Row) -> Path:
        given = options(row)
        return zoo.keep(f"fresh-{row}", given, lambda to: Timeline.create(to, **given).close())

    return of


def lives(zoo: Zoo, options: Callable[[Row], Options], fresh: Fresh) -> Kept:
    """Of a row a store that went one of the ways of `_WAYS`, only to be read."""

    def of(row: Row, name: str) -> Path:
        begin, go = _WAYS[name]

        def make(to: Path) -> None:
            with Timeline.open(shutil.copytree(of(row, begin) if begin else fresh(row), to)) as timeline:
                go(timeline, row)

        return zoo.keep(f"{name}-{row}", options(row), make)

    return of


@pytest.fixture(scope="session")
def _fresh(zoo: Zoo, options: Callable[[Row], Options]) -> Fresh:
    return beginnings(zoo, options)


@pytest.fixture(scope="session")
def kept(zoo: Zoo, options: Callable[[Row], Options], _fresh: Fresh) -> Kept:
    """`kept(row, name)`: a store that went one of the ways of `_WAYS`, only to be read."""
    return lives(zoo, options, _fresh)


def _aged(timeline: Timeline, row: Row) -> None:
    timeline.apply(placed(2), gate=lenient)
    if row.rule.relearns:
        timeline.retract(GONE)
        timeline.apply(batch(3), gate=lenient)


def _solved(timeline: Timeline, row: Row) -> None:
    for facts in (KEPT[4:], KEPT[:4]):  # other batches in another order
        timeline.apply(facts, gate=lenient)
    timeline.reconsolidate(guard=False)
    timeline.apply(batch(3), gate=lenient)


_WAYS: dict[str, tuple[str, Callable[[Timeline, Row], object]]] = {
    "once": ("", lambda timeline, _: timeline.apply(placed(0), gate=lenient)),
    "lived": ("once", lambda timeline, _: timeline.apply(placed(1), gate=lenient)),
    "aged": ("lived", _aged),
    "solved": ("", _solved),
}
"""What was done to a store, and to which: edited with `placed(0)`, then `placed(1)`, then `placed(2)` and, where the
rule can relearn, `GONE` retracted and `batch(3)` edited; or edited with `KEPT`, solved again, and `batch(3)` edited.
Several behaviours ask of the same steps, and each step is a solve, of which the grid's time is made."""


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[Callable[[Path, str], Timeline]]:
    """Opens a copy of a store under a name; all are closed at the end."""
    with ExitStack() as closing:
        yield lambda store, name: closing.enter_context(Timeline.open(shutil.copytree(store, tmp_path / name)))


@pytest.fixture
def fresh(row: Row, _fresh: Fresh, copied: Callable[[Path, str], Timeline]) -> Callable[..., Timeline]:
    """`fresh(name)`: a store of the row at step 0."""
    return lambda name="fresh": copied(_fresh(row), name)


@pytest.fixture
def went(row: Row, kept: Kept, copied: Callable[[Path, str], Timeline]) -> Callable[[str], Timeline]:
    """`went(name)`: a copy of the row's store that went a way of `_WAYS`."""
    return lambda name: copied(kept(row, name), name)


@pytest.fixture
def lived(went: Callable[[str], Timeline]) -> Callable[[], Timeline]:
    """`lived()`: a store of the row into which `placed(0)` and `placed(1)` were edited."""
    return lambda: went("lived")


KILLED = """
import json, os, signal, sys
import torch, transformers.models.gpt2.modeling_gpt2, lifelong_edit.timeline.solving, lifelong_edit.stores.index
from lifelong_edit.timeline import Timeline
from tests.contracts.editing import placed

torch.set_num_threads(1)

def run(store, batches, last):
    judged = 0
    def gate(*_):
        nonlocal judged
        judged += 1
        if judged == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"judge": "none"}
    with Timeline.open(store) as timeline:
        for number in batches:
            timeline.apply(placed(number), gate=gate)

for line in sys.stdin:  # each line is a run in a process of its own, without importing torch anew
    if not (child := os.fork()):
        run(*json.loads(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def streamed() -> Iterator[Callable[..., int]]:
    """`streamed(store, batches, kill=n)`: edits batches in a process of its own; how it ended.

    kill: SIGKILL ends it while the n-th batch is judged, solved and not yet committed.
    """
    made: list[subprocess.Popen[str]] = []

    def run(store: Path, batches: list[int], kill: int | None = None) -> int:
        if not made:
            command = [sys.executable, "-c", KILLED]
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            made.append(subprocess.Popen(command, text=True, cwd=Path(__file__).parents[2], **pipes))
        process = made[0]
        assert process.stdin is not None and process.stdout is not None
        print(json.dumps([str(store), batches, kill]), file=process.stdin, flush=True)
        return int(process.stdout.readline())

    yield run
    for process in made:
        process.communicate()
