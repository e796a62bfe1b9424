"""The time of solving again over N facts relative to its passes, and its peak memory as N grows.

A canonical reconsolidation, without a store, is measured against as many bare forward and backward passes over its own
rows (`bare.py`), taken in the same process just before and just after it; what it does beside its passes (metric,
directions, solves, the closing trace of keys) is its own cost. Each N has a process of its own, in which the peak of
memory is set back before it begins. The step is then committed to a store, and the peak of that taken as well.
Facts are those of trex-gpt2-mini's stream, for time and memory only, and CounterFact's on GPT-2-small's shape.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks import common, gpt2_shape
from benchmarks.bare import Kind, bare_pass
from benchmarks.bench_commit import Cost, cost
from benchmarks.data import trex_facts, trex_file, trex_model
from lifelong_edit import Settings, Timeline
from lifelong_edit.bench import Bench, silent
from lifelong_edit.editors.contract import Change, Editor, Entries
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.stores import KEYS, Reconsolidate
from lifelong_edit.timeline.commit import UNMADE, Draft, write_step
from lifelong_edit.tracing.rows import Row, drawn_rows, fact_rows, subjects_of

MODELS = ("trex-gpt2-mini", "gpt2-small-shape")
MIB = 2**20


def own_rows(bench: Bench, facts: Sequence[Fact]) -> list[Row]:
    """Rows as one pass has them: all facts in phrasings drawn for it, and preserved prompts near some of them."""
    s = RidgeEditor.options_of(bench)
    near = torch.from_numpy(bench.conflict_keys([fact.prompt for fact in facts[:100]])).to(bench.loaded.device)
    subjects = subjects_of(facts)
    kept = bench.preserved.rows(s.reconsolidation_preserved, near, s.preserved_weight, subjects, s.seed)
    own = fact_rows(bench.loaded, facts, s.phrasings)
    return [*drawn_rows(own, s.reconsolidation_phrasings, s.seed), *kept]


def resident(what: str = "VmRSS") -> float:
    """Memory of this process in MiB, now or, as `VmHWM`, at its peak so far."""
    status = Path("/proc/self/status")
    if status.exists():
        found = {line.split(":")[0]: line.split()[1] for line in status.read_text().splitlines() if "kB" in line}
        return int(found[what]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Set the peak back to what is resident now, where the system allows it."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def measure(timeline: Timeline, facts: Sequence[Fact], kinds: Sequence[Kind]) -> dict[str, Any]:
    """One reconsolidation of all facts between two bare passes of each kind over its rows, and its commit."""
    bench, editor, s = timeline.bench(), timeline.editor(), timeline.settings
    rows = own_rows(bench, facts)
    before = {kind: cost(lambda k=kind: bare_pass(bench.loaded, rows, s.micro_batch, k)) for kind in kinds}
    forget_peak()
    resident_before, done = resident(), list[Change]()
    sizes: list[int] = []
    whole = cost(lambda: done.append(solve(editor, facts, sizes)))
    memory = {"before": resident_before, "peak": resident("VmHWM"), "after": resident()}
    solved, report = done[0], done[0].report
    if report["rows"] != (counted := _count(rows)):
        raise SystemExit(f"a pass had {report['rows']} rows, the bare one {counted}; make own_rows follow the passes")
    after = {kind: cost(lambda k=kind: bare_pass(bench.loaded, rows, s.micro_batch, k)) for kind in kinds}
    bare = {k: Cost((before[k].wall + after[k].wall) / 2, (before[k].cpu + after[k].cpu) / 2) for k in kinds}
    memory["keys"] = sum(sizes) / MIB
    forget_peak()
    memory["before_commit"] = resident()
    commit = cost(lambda: write(timeline, solved))
    memory["peak_of_commit"] = resident("VmHWM")
    return {
        "facts": len(facts),
        "rows": report["rows"],
        "tokens": sum(len(row.encoded.ids) for row in rows),
        "positions": sum(row.positions for row in rows),
        "passes": report["passes"],
        "seconds": vars(whole),
        "commit_seconds": vars(commit),
        "bare_pass_seconds": {kind: vars(found) for kind, found in bare.items()},
        "relative_to_bare": {kind: whole.over(found, int(str(report["passes"]))) for kind, found in bare.items()},
        "memory_mib": memory,
    }


def solve(editor: Editor, facts: Sequence[Fact], sizes: list[int]) -> Change:
    """A reconsolidation with its closing trace of keys, which are counted and dropped."""
    solved = editor.relearn(facts, say=silent)
    traced = solved.parts[KEYS]
    assert isinstance(traced, Entries)
    for part in traced.make():
        sizes += [sum(a.nbytes for a in keys.rows.values()) + keys.conflict.nbytes for keys in part.values()]
    return solved


def _count(rows: Sequence[Row]) -> dict[str, int]:
    preserved = sum(row.kind == "preserved" for row in rows)
    return {"facts": len(rows) - preserved, "preserved": preserved}


def write(timeline: Timeline, solved: Change) -> None:
    """Commit what a reconsolidation led to, as a timeline does."""
    draft = Draft(record=Reconsolidate(**UNMADE | {"parent": 0}), weights=solved.weights({}), change=solved)
    write_step(timeline._log, timeline.history(), timeline.config, draft)


def inputs(model: str, count: int, folder: Path) -> tuple[Path, list[Fact], list[Probe]]:
    """Folder of a model, facts, preserved prompts."""
    if model == MODELS[0]:
        return trex_model(), trex_facts("stream")[:count], list(gpt2_shape.probes(trex_file("train")))
    return gpt2_shape.build(folder / "model"), gpt2_shape.counterfact(count), gpt2_shape.preserved(300)


def one(model: str, count: int, text_tokens: int, changes: dict[str, Any]) -> dict[str, Any]:
    """What is measured of one model and number of facts, in this process."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder, facts, preserve = inputs(model, count, Path(name))
        settings = Settings(text_tokens=text_tokens, **changes)
        store, text = Path(name) / "store", gpt2_shape.text()
        with Timeline.create(store, model=str(folder), settings=settings, preserve=preserve, text=text) as timeline:
            return measure(timeline, facts, get_args(Kind))


def apart(options: argparse.Namespace, model: str, count: int) -> dict[str, Any]:
    """`one` in a process of its own, so that nobody else's memory is seen."""
    asked = [f"--model={model}", f"--one={count}", f"--text-tokens={options.text_tokens}"]
    asked += [f"--passes={options.passes}"] if options.passes else []
    command = [sys.executable, "-m", "benchmarks.bench_reconsolidation", *asked]
    done = subprocess.run(command, cwd=common.REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    ratio, memory = found["relative_to_bare"]["edited matrices"], found["memory_mib"]
    print(
        f"{model}, {found['facts']} facts: {found['passes']} passes, {ratio['cpu']:.2f} × their bare ones (wall "
        f"{ratio['wall']:.2f}), {memory['before']:.0f} MiB before, {memory['peak']:.0f} at the peak, keys "
        f"{memory['keys']:.1f}, {memory['peak_of_commit']:.0f} at the peak of the commit",
        flush=True,
    )
    return found


def main() -> None:
    """All sizes, each in a process of its own; figures to results/reconsolidation.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", nargs="*", type=int, default=[100, 1000, 2000], help="on trex-gpt2-mini")
    parser.add_argument("--gpt2-facts", nargs="*", type=int, default=[], help="on GPT-2-small's shape")
    parser.add_argument("--passes", type=int, help="at most so many passes; default: the setting's")
    parser.add_argument("--text-tokens", type=int, default=8_000, help="tokens of text behind C₀")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help=argparse.SUPPRESS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        changes = {"reconsolidation_passes": options.passes} if options.passes else {}
        print(json.dumps(one(options.model, options.one, options.text_tokens, changes)))
        return
    common.shared("models", MODELS[0])  # ends here where there is nothing to measure with
    found = {
        model: [apart(options, model, count) for count in counts]
        for model, counts in zip(MODELS, (options.facts, options.gpt2_facts), strict=True)
    }
    common.write("reconsolidation", found)


if __name__ == "__main__":
    main()
