"""Key indexes at 10,000, 100,000 and 1,000,000 keys: time to build, search and remove, memory, recall against flat.

Keys are made around real ones. The conflict keys of trex-gpt2-mini's training facts, centred and turned onto their
first 1,024 principal directions (of 1,152), are the cores; a key is a core plus half the difference of two others of
its relation, at length 1. So keys of one relation
lie together as real ones do, and the spectrum is near theirs: 128 directions hold .71 of the square length of the real
keys, where they would hold .125 of random ones. Queries are
25 real keys of facts of the stream, which are no cores, and 25 stored keys moved a little, by 0.15 of a difference.

Each kind at each size runs in a process of its own, with one thread; times are processor seconds, since there are
neighbours. `product` is `KeyIndex` as `plan_index` chooses it, with a conflict check of a batch of 50 facts: search,
identities and scoring, beside the bare FAISS search on the same index.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks import common
from benchmarks.data import trex_facts, trex_model
from lifelong_edit.facts import Fact
from lifelong_edit.policies import LiveIdentities, find_conflicts, plan_index
from lifelong_edit.stores import KeyIndex
from lifelong_edit.timeline.defaults import default_scorer
from lifelong_edit.timeline.solving import NEAREST, NEIGHBOURS

Array = npt.NDArray[np.float32]

WIDTH, BATCH = 1024, 50
SIZES = (10_000, 100_000, 1_000_000)
KINDS: dict[str, int] = {"flat": 10**6, "product": 10**6, "ivf": 10**6, "hnsw": 10**5, "ivf_on_disk": 10**4}
"""The largest size at which each is measured."""
GONE = 500


class Cores:
    """Real keys to make others around: (n, 1,024) float32, centred, in groups of one relation."""

    def __init__(self, path: Path) -> None:
        found = np.load(path)
        self.keys: Array = found["cores"]
        self.queries: Array = found["queries"]
        relations = found["relations"]
        groups = [np.flatnonzero(relations == name) for name in np.unique(relations)]
        self.groups = [group for group in groups if len(group) > 2]

    def make(self, count: int, seed: int) -> Array:
        """So many keys of length 1."""
        random = np.random.default_rng(seed)
        sizes = np.array([len(group) for group in self.groups])
        chosen = random.choice(len(self.groups), count, p=sizes / sizes.sum())
        made = np.empty((count, WIDTH), np.float32)
        for start in range(0, count, 50_000):
            part = chosen[start : start + 50_000]
            picks = [random.integers(0, sizes[part]) for _ in range(3)]
            core, one, other = (
                np.array([self.groups[g][i] for g, i in zip(part, pick, strict=True)]) for pick in picks
            )
            made[start : start + len(part)] = self.keys[core] + 0.5 * (self.keys[one] - self.keys[other])
        return unit(made)

    def ask(self, keys: Array) -> Array:
        """The queries: (50, 1,024)."""
        random = np.random.default_rng(7)
        stored = keys[random.choice(len(keys), BATCH // 2, replace=False)]
        one, other = self.make(BATCH, 8)[: BATCH // 2], self.make(BATCH, 9)[: BATCH // 2]
        return unit(np.vstack([self.queries[: BATCH - len(stored)], stored + 0.15 * (one - other)]))


def unit(keys: Array) -> Array:
    """The same at length 1, in place."""
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    return keys


def real_keys(path: Path) -> dict[str, Any]:
    """Conflict keys of the training facts and of some of the stream, kept in a file; and what their spectrum is."""
    import torch

    from lifelong_edit.models import encode_prompt, load_model
    from lifelong_edit.tracing.conflict_keys import lowest_keys

    torch.set_num_threads(1)
    loaded = load_model(str(trex_model()), device="cpu", dtype="float32")
    facts = {"train": trex_facts("train"), "stream": trex_facts("stream")}
    facts["stream"] = facts["stream"][:: len(facts["stream"]) // BATCH]
    prompts = {part: [encode_prompt(loaded.tokenizer, fact.prompt) for fact in facts[part]] for part in facts}
    keys = {part: lowest_keys(loaded, prompts[part], 64).cpu().numpy() for part in facts}
    mean = keys["train"].mean(0)
    centred = {part: keys[part] - mean for part in keys}
    units = unit(centred["train"].copy())
    values, vectors = np.linalg.eigh((units.T @ units).astype(np.float64))
    turn = np.ascontiguousarray(vectors[:, ::-1][:, :WIDTH], dtype=np.float32)
    relations = np.array([fact.relation for fact in facts["train"]])
    np.savez(path, cores=centred["train"] @ turn, queries=unit(centred["stream"] @ turn), relations=relations)
    share = np.cumsum(values[::-1]) / values.sum()
    return {"cores": len(units), "width": len(mean), "share_of_128": float(share[127]), "of_1024": float(share[1023])}


def cost(what: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """The least processor seconds of some calls, and what the last gave."""
    least, found = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        found = what()
        least = min(least, time.process_time() - start)
    return least, found


def resident() -> float:
    """GiB of memory that this process has resident."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def worst_of(keys: Array, asked: Array) -> Array:
    """Of each query the cosine of its last true neighbour, (n, 1): whatever is as near is one too."""
    cosines = np.hstack([asked @ keys[start : start + 50_000].T for start in range(0, len(keys), 50_000)])
    return np.partition(cosines, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS, None]


def recall(cosines: Array, worst: Array) -> float:
    """Share of the true neighbours that were found, by the cosines of what was found."""
    return float((cosines >= worst - 1e-5).mean())


def make_index(kind: str, keys: Array, folder: Path) -> Any:
    """A FAISS index of the kind, filled."""
    count = len(keys)
    if kind == "flat":
        index = faiss.IndexIDMap(faiss.IndexFlatIP(WIDTH))
        index.add_with_ids(keys, np.arange(count))
        return index
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = 128
        index.add(keys)
        return index
    lists = min(1024, int(4 * count**0.5))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(WIDTH), WIDTH, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.nprobe = 1, 5, max(8, lists // 16)
    index.train(keys[:: max(1, count // (20 * lists))])
    if kind == "ivf_on_disk":
        stored = faiss.OnDiskInvertedLists(lists, index.code_size, str(folder / "lists"))
        index.replace_invlists(stored, True)
        stored.this.disown()
    else:
        index.set_direct_map_type(faiss.DirectMap.Hashtable)
    index.add_with_ids(keys, np.arange(count))
    return index


def measure_faiss(kind: str, keys: Array, asked: Array, folder: Path) -> dict[str, Any]:
    """Build, search, recall, removal of a bare FAISS index; HNSW cannot remove: what is gone is left out of answers."""
    before = resident()
    seconds, index = cost(lambda: make_index(kind, keys, folder))
    memory = resident() - before
    searching, (cosines, found) = cost(lambda: index.search(asked, NEIGHBOURS), 3)
    gone = np.unique(found[:, 0])[:GONE]
    gone = np.unique(np.hstack([gone, np.arange(0, len(keys), len(keys) // GONE)]))
    if kind == "hnsw":
        chosen = faiss.SearchParametersHNSW(efSearch=128, sel=faiss.IDSelectorNot(faiss.IDSelectorBatch(gone)))
        removing, (left_cosines, left) = cost(lambda: index.search(asked, NEIGHBOURS, params=chosen))
    else:
        removing, _ = cost(lambda: index.remove_ids(gone))
        left_cosines, left = index.search(asked, NEIGHBOURS)
    kept = np.setdiff1d(np.arange(len(keys)), gone)
    again = worst_of(keys[kept], asked) if len(keys) <= 10**5 else None  # a second copy of all keys
    return {
        "build_seconds": seconds,
        "memory_gib": memory,
        "search_seconds": searching,
        "recall": recall(cosines, worst_of(keys, asked)),
        "remove_seconds": removing,
        "removed": len(gone),
        "removed_returned": int(np.isin(left, gone).sum()),
        "recall_after_removal": None if again is None else recall(left_cosines, again),
    }


def name_of(number: int) -> str:
    """A digest for the key of that number."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**63 * 2:016x}"


def fact_of(number: int, prompt: str) -> Fact:
    """A fact that no other is equal to."""
    return Fact(
        subject=f"Subject {number}", prompt=f"{prompt} {number} is", target=f"T{number % 7}", relation=f"P{number % 40}"
    )


def measure_product(keys: Array, asked: Array, folder: Path) -> dict[str, Any]:
    """`KeyIndex` as the policy chooses it, and a conflict check of a batch."""
    rows = {name_of(number): number for number in range(len(keys))}
    names = list(rows)

    def source(facts: Sequence[str]) -> Array:
        return keys[[rows[fact] for fact in facts]]

    before = resident()
    seconds, index = cost(lambda: KeyIndex.open(folder / "none", WIDTH, "none", source, names))
    kind = plan_index(len(index), index.kind, index.fitted)
    rebuilding, _ = cost(lambda: index.rebuild(kind)) if kind is not None else (0.0, None)
    memory = resident() - before
    searching, found = cost(lambda: index.search(asked, NEIGHBOURS), 3)
    bounded, _ = cost(lambda: index.search(asked, NEIGHBOURS, NEAREST), 3)
    cosines = np.array([[cosine for _, cosine in row] for row in found], np.float32)
    result = {
        "kind": index.kind,
        "build_seconds": seconds + rebuilding,
        "memory_gib": memory,
        "search_seconds": searching,
        "search_from_floor_seconds": bounded,
        "recall": recall(cosines, worst_of(keys, asked)),
    }
    result |= check_seconds(index, asked, names)
    saving, _ = cost(lambda: index.save(folder / "index", "chain"))
    opening, again = cost(lambda: KeyIndex.open(folder / "index", WIDTH, "chain", source, ()))
    gone = [row[0][0] for row in found] + names[:: len(names) // GONE]
    removing, _ = cost(lambda: index.remove(sorted(set(gone))))
    returned = sum(fact in set(gone) for row in index.search(asked, NEIGHBOURS) for fact, _ in row)
    return result | {
        "save_seconds": saving,
        "open_seconds": opening,
        "opened": len(again) == len(keys),
        "remove_seconds": removing,
        "removed": len(set(gone)),
        "removed_returned": returned,
    }


def check_seconds(index: KeyIndex, asked: Array, names: Sequence[str]) -> dict[str, Any]:
    """A conflict check of a batch beside the bare FAISS search on the same index, with the same reach."""
    live = {name: fact_of(number, "The home of") for number, name in enumerate(names)}
    identities, known = cost(lambda: LiveIdentities(live))
    batch = [fact_of(number, "The house of") for number in range(len(names), len(names) + len(asked))]

    scorer = default_scorer()

    def check() -> object:
        near = index.search(asked, NEIGHBOURS, NEAREST)
        return find_conflicts(batch, live, scorer=scorer, candidates=near, known=known)

    scanned = index._reduced(asked)
    bare, _ = cost(lambda: index._scan.search(scanned, min(len(names), 2 * NEIGHBOURS + 16)), 5)
    whole, _ = cost(check, 5)
    return {
        "identities_of_all_seconds": identities,
        "bare_search_seconds": bare,
        "check_seconds": whole,
        "check_to_bare": whole / bare,
    }


def one(kind: str, size: int, cores: Path) -> dict[str, Any]:
    """One kind at one size, in this process."""
    faiss.omp_set_num_threads(1)
    made = Cores(cores)
    keys = made.make(size, 1)
    asked = made.ask(keys)
    with tempfile.TemporaryDirectory() as folder:
        if kind == "product":
            return measure_product(keys, asked, Path(folder))
        return measure_faiss(kind, keys, asked, Path(folder))


def main() -> None:
    """All kinds at all sizes; figures to results/index.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of keys")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of index")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one(options.kinds[0], options.sizes[0], Path(options.one))))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        cores = Path(folder) / "cores.npz"
        results["keys"] = real_keys(cores)
        for size in options.sizes:
            for kind in options.kinds:
                if size > KINDS[kind]:
                    continue
                command = [sys.executable, "-m", "benchmarks.bench_index", "--one", str(cores)]
                command += ["--kinds", kind, "--sizes", str(size)]
                done = subprocess.run(command, cwd=common.REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
                results.setdefault(str(size), {})[kind] = json.loads(
                    done.stdout.splitlines()[-1]
                )  # FAISS has its say before
                print(size, kind, json.dumps(common.rounded(results[str(size)][kind])), flush=True)
                common.write("index", results)


if __name__ == "__main__":
    main()
