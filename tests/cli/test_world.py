"""Several processes: the same digests as one, and an end with a sentence when one of them ends before the others."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.conftest import KILLED, SECONDS, Start, digests, ended, last_line
from tests.warm import Running

Run = Callable[..., Result]
Program = Callable[..., Running]
PHASES = {
    "in a micro-batch": {"module": "lifelong_edit.tracing", "owner": "trace", "name": "_traced", "call": 2},
    "in the solve": {"module": "lifelong_edit.editors.ridge", "owner": "passes", "name": "solve", "call": 1},
    "before the commit": {"module": "lifelong_edit.timeline", "owner": "shared", "name": "_digest_of", "call": 1},
}


def test_two_processes_come_to_the_digests_of_one(
    run: Run, together: Start, tmp_path: Path, making: list[str], news: Path
) -> None:
    """From nothing on: the store, batches, a reconsolidation, and what is measured. Only process 0 speaks."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    arguments = ["stream", news, *making, "--batch-size", 3, "--reconsolidate", "every:2", "--store"]
    assert run(*arguments, alone).exit_code == 0
    (code, out, err), (other, *silent) = ended(together(*arguments, shared))
    assert (code, other) == (0, 0), err
    assert silent == ["", ""]
    assert "2 steps" in err
    assert len(out.splitlines()) == 4
    assert digests(shared) == digests(alone)
    assert [kind for kind, *_ in digests(shared)] == ["init", "edit", "edit", "reconsolidate"]
    (first, figures, _), (second, *_) = ended(together("eval", "--json", "--store", shared))
    assert (first, second) == (0, 0)
    assert json.loads(figures) == json.loads(run("eval", "--json", "--store", shared).stdout)


OTHERS = {
    "memit": ["modules=0-1@subject", "contexts=1", "steps=3", "c0=5", "rate=0.2"],
    "neurons": ["modules=1@subject", "rounds=4", "more_rounds=1", "contexts=1", "swapped=1", "precision=float32"],
    "ft": ["modules=2", "rate=0.01", "epochs=2"],
}
"""Settings of rules whose searches are shared, and of one that shares nothing but the questions of its judges."""


@pytest.mark.parametrize("rule", OTHERS)
def test_other_rules_come_to_the_same(
    run: Run, together: Start, tmp_path: Path, making: list[str], news: Path, rule: str
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    options = [*making[:6], "--editor", rule]
    for pair in ["text_tokens=2000", "micro_batch=4", "gate_perplexity=1e9", "conflict_cosine=0.9999", *OTHERS[rule]]:
        options += ["--set", pair]
    assert run("init", "--store", alone, *options).exit_code == 0
    shutil.copytree(alone, shared)
    assert run("stream", news, "--batch-size", 6, "--measure", 0, "--store", alone).exit_code == 0
    (code, _, err), _ = ended(together("stream", news, "--batch-size", 6, "--measure", 0, "--store", shared))
    assert code == 0, err
    assert digests(shared) == digests(alone)
    assert [kind for kind, *_ in digests(shared)] == ["init", "edit"]


@pytest.fixture(scope="session")
def undisturbed(run: Run, _empty_template: Path, news: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The digests of a run in one process that was left alone."""
    store = Path(shutil.copytree(_empty_template, tmp_path_factory.mktemp("undisturbed") / "store"))
    assert run("stream", news, "--batch-size", 3, "--store", store).exit_code == 0
    return list(digests(store))


@pytest.mark.parametrize(("phase", "killed"), [*((phase, 1) for phase in PHASES), ("in the solve", 0)])
def test_one_is_killed(
    run: Run, together: Start, empty_store: Path, news: Path, undisturbed: list[object], phase: str, killed: int
) -> None:
    """The other ends as well, with a sentence, the store is whole, and the same command goes on."""
    arguments = ["stream", news, "--batch-size", 3, "--store", empty_store]
    processes = together(*arguments, befores={killed: KILLED.format(**PHASES[phase])})
    assert processes[killed].wait(SECONDS) == -signal.SIGKILL
    code, _, err = ended(processes)[1 - killed]
    assert code == 1
    assert f"error: process {killed} of 2 ended before the others" in last_line(err)
    assert run("fsck", "--store", empty_store).exit_code == 0
    committed = digests(empty_store)
    assert committed == undisturbed[: len(committed)]
    assert len(committed) < len(undisturbed)
    assert run(*arguments).exit_code == 0
    assert digests(empty_store) == undisturbed


OTHERWISE = """
from lifelong_edit.editors.ridge import batch
from lifelong_edit.stores import Dense, materialise
true = batch.Work.total
def otherwise(work):
    return {name: Dense(materialise(shift) * 2) for name, shift in true(work).items()}
batch.Work.total = otherwise
"""


def test_results_that_differ_are_not_committed(run: Run, together: Start, empty_store: Path, news: Path) -> None:
    processes = together("stream", news, "--batch-size", 3, "--store", empty_store, befores={1: OTHERWISE})
    (code, _, err), (other, *_) = ended(processes)
    assert (code, other) == (1, 1)
    assert "process 0 of 2 came to weights with the digest" in last_line(err)
    assert [kind for kind, *_ in digests(empty_store)] == ["init"]


SINGULAR = """
from lifelong_edit.editors.ridge import passes
from lifelong_edit.errors import StepRefusedError
def singular(*arguments):
    raise StepRefusedError("a key of the solve is not finite")
passes.solve = singular
"""


def test_what_one_refuses_all_refuse(run: Run, together: Start, empty_store: Path, news: Path) -> None:
    """An error in the work of one of them is everybody's, and said once."""
    processes = together("stream", news, "--batch-size", 3, "--store", empty_store, befores={1: SINGULAR})
    (code, _, err), (other, *silent) = ended(processes)
    assert (code, other, silent) == (1, 1, ["", ""])
    assert last_line(err) == "error: a key of the solve is not finite"


SLOW = """
import time
from pathlib import Path
from lifelong_edit.tracing import trace
def slow(*arguments):
    Path({here!r}).touch()
    time.sleep(100)
trace._traced = slow
"""


def test_ctrl_c_ends_both(run: Run, together: Start, empty_store: Path, news: Path, tmp_path: Path) -> None:
    """Sent to process 0 alone: what waits for it learns so."""
    here = tmp_path / "here"
    arguments = ["stream", news, "--batch-size", 3, "--store", empty_store]
    processes = together(*arguments, befores={0: SLOW.format(here=str(here))})
    until = time.monotonic() + SECONDS
    while not here.exists() and time.monotonic() < until:
        time.sleep(0.1)
    processes[0].send_signal(signal.SIGINT)
    (code, _, err), (other, *silent) = ended(processes)
    assert (code, silent) == (130, ["", ""])
    assert other != 0
    assert "interrupted" in err
    assert [kind for kind, *_ in digests(empty_store)] == ["init"]


def test_the_program_starts_the_others(run: Run, program: Program, store: Path) -> None:
    """`--processes`: a reconsolidation comes to the same weights."""
    copy = Path(shutil.copytree(store, store.with_name("copy")))
    assert run("reconsolidate", "--no-guard", "--store", copy).exit_code == 0
    process = program("--processes", 2, "reconsolidate", "--no-guard", "--store", store)
    _, err = process.communicate(SECONDS)
    assert process.wait() == 0, err.decode()
    assert digests(store) == digests(copy)


def test_what_travels_arrives_as_it_was() -> None:
    """Bits, types, shapes and strides of tensors, wherever they stand; what has gaps arrives without."""
    import torch

    from lifelong_edit.world.carrying import as_bytes, put_in, taken_out

    wide = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value = {"a": [wide.T, torch.tensor([-0.0, torch.nan])], "b": (torch.zeros(0, 4), torch.tensor(True), "text", None)}
    value["c"] = [wide.to(torch.bfloat16), wide[:, :2], torch.tensor(7)]
    tensors: list[object] = []
    skeleton = taken_out(value, tensors)  # type: ignore[arg-type]
    found = put_in(skeleton, as_bytes(tensors))  # type: ignore[arg-type]
    pairs = [(found["a"][0], wide.T), (found["b"][0], value["b"][0]), (found["b"][1], torch.tensor(True))]
    pairs += [(found["c"][0], wide.to(torch.bfloat16)), (found["c"][1], wide[:, :2]), (found["c"][2], torch.tensor(7))]
    for got, sent in pairs:
        assert torch.equal(got, sent)
        assert got.dtype == sent.dtype
    assert found["a"][0].stride() == wide.T.stride()
    assert found["a"][1].view(torch.int32).tolist() == value["a"][1].view(torch.int32).tolist()
    assert found["b"][2:] == ("text", None)


def test_help_says_so_and_starts_nothing(run: Run) -> None:
    """Help and commands that several processes do not share need no others."""
    told = run("--help").stdout
    assert "--processes" in told
    assert "torchrun" in told
    assert run("--processes", 2, "stream", "--help").exit_code == 0
    assert run("--processes", 2, "editors").exit_code == 0
