"""What holds efficacy, generality and locality under many edits: the solve over all facts, one thing changed at a time.

Facts are training facts of trex-gpt2-mini, streams and what is preserved disjoint by subject (`validation.py`); nothing
is measured, or chosen, on the facts whose figures are reported elsewhere. Every variant is solved for from the base
weights in a fixed number of passes and judged teacher-forced. Results are written after each variant, and a variant
that the file has already is skipped. `--table` writes docs/ablations.md from the file and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks import ablations_page, common
from benchmarks.ablated import Otherwise, free_space, solve_otherwise
from benchmarks.bench_streams import Stream, judge, line
from benchmarks.data import trex_facts, trex_model, wikitext
from benchmarks.validation import CHOSEN, validation
from lifelong_edit import Settings
from lifelong_edit.bench import Bench, State, prepare
from lifelong_edit.editors.gradient.rule import make
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.facts import Probe
from lifelong_edit.models import load_model
from lifelong_edit.tasks.causal.perplexity import perplexity_of, text_windows
from lifelong_edit.timeline.model import as_tensors
from lifelong_edit.tracing.rows import subjects_of

NAME = "ablations"
MODULES = tuple(CHOSEN["modules"])
DEFAULT = Settings(reconsolidation_passes=16, reconsolidation_gain=0).replace(
    **{name: value for name, value in CHOSEN.items() if name != "modules"}
)
"""All passes are made: variants are compared at equal numbers of them."""
STREAM, SIZE = "stream", 50
INPUTS = tuple(f"transformer.h.{layer}.mlp.c_fc" for layer in (3, 4, 5))


@dataclass(frozen=True)
class Variant:
    """One thing changed against the default: a setting, the modules, the preserved prompts, or the solve itself.

    preserve: `all`, the `prompts` of the facts that are kept without their
    rephrases, or `none`. start: how much of a stream's ΔW is begun with; STREAM: the stream itself is judged.
    """

    group: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = MODULES
    preserve: str = "all"
    otherwise: Otherwise | None = None
    start: float | str | None = None

    @property
    def key(self) -> str:
        """What the result file calls it."""
        return f"{self.group}: {self.name}"

    @property
    def bench(self) -> tuple[tuple[str, ...], str, int]:
        """What its bench is made of: variants with the same one share it."""
        return self.modules, self.preserve, self.full.seed

    @property
    def full(self) -> Settings:
        """The settings of the variant, whole."""
        return DEFAULT.replace(**self.settings)


def _eta(eta: float, passes: int) -> Variant:
    settings = {"reconsolidation_eta": eta, "reconsolidation_passes": passes}
    return Variant("asks", f"step {eta}, {passes} passes", settings)


def _decay(decay: float, passes: int = 16) -> Variant:
    settings = {"reconsolidation_decay": decay, "reconsolidation_passes": passes}
    return Variant("decay", f"{decay:.0%} let go, {passes} passes", settings)


def _start(share: float) -> Variant:
    return Variant("starts", f"from {share:g} of its shift, 6 passes", {"reconsolidation_passes": 6}, start=share)


IN_TURN = Otherwise(in_turn=True)
_TURNS = {"reconsolidation_eta": 5.4}  # a module that moves alone need not share the loss with the others
VARIANTS = (
    Variant("default", "default"),
    Variant("default", "other draws", {"seed": 1}),
    Variant("modules", "3-5", modules=("3-5",)),
    Variant("modules", "2-5", modules=("2-5",)),
    Variant("modules", "0-5", modules=("0-5",)),
    Variant("modules", "1-2@subject, 3-5", modules=("1-2@subject", "3-5")),
    Variant("modules", "0-2@subject", modules=("0-2@subject",)),
    Variant("modules", "0-2@subject, 3-5, c_fc of 3-5", modules=("0-2@subject", "3-5", *INPUTS)),
    *(_decay(share) for share in (0, 0.02, 0.05)),
    *(_decay(share, 32) for share in (0, 0.01)),
    *(_eta(*asked) for asked in ((0.9, 32), (3.6, 8), (3.6, 16), (6.0, 5))),
    Variant("preserved", "prompts without their rephrases", preserve="prompts"),
    Variant("preserved", "none given: derived from the facts", preserve="none"),
    *(Variant("preserved", f"keys in P, weight {keys:g}", {"reconsolidation_keys": keys}) for keys in (0.0, 2.0)),
    *(Variant("preserved", f"{n:,} rows per pass", {"reconsolidation_preserved": n}) for n in (0, 100, 1500)),
    Variant("preserved", "300, none drawn near", otherwise=Otherwise(near=False)),
    *(Variant("phrasings", f"{count} of them known", {"phrasings": count}) for count in (0, 1, 8)),
    Variant("phrasings", "all three in each pass", {"reconsolidation_phrasings": 3}),
    *(Variant("metric", f"κ = {kappa:,g}", {"kappa": kappa}) for kappa in (0.3, 20.0, 10000.0)),
    Variant("metric", "refreshed in each pass", otherwise=Otherwise(refresh="metric")),
    Variant("metric", "refreshed, and the step", otherwise=Otherwise(refresh="step")),
    Variant("solve", "Gauss–Seidel, 18 traces", _TURNS | {"reconsolidation_passes": 18}, otherwise=IN_TURN),
    Variant("solve", "Gauss–Seidel, 48 traces", _TURNS | {"reconsolidation_passes": 48}, otherwise=IN_TURN),
    *(Variant("free", f"threshold {at}", otherwise=Otherwise(free=at)) for at in (0.02, 0.2)),
    Variant("starts", "the stream of six batches itself", start=STREAM),
    *(_start(share) for share in (0, 0.3, 1)),
    *(Variant("text", f"c₀ = {keys:,g}", {"c0": keys}) for keys in (300.0, 3000.0)),
)


class Bed:
    """What all variants share: the facts to teach, what is asked, what may be preserved, the texts."""

    def __init__(self, count: int, seed: int) -> None:
        self.folder, facts = trex_model(), trex_facts("train")
        self.stream, self.probes = validation(facts, count, seed)
        first = {fact.prompt for fact in facts}
        self.prompts = [probe for probe in self.probes if probe.prompt in first]
        self.text, self.test = wikitext("valid"), wikitext("test")
        self._editor: tuple[object, RidgeEditor] | None = None
        self._streamed: State | None = None
        self._seconds = 0.0
        self._perplexity: float | None = None

    def editor(self, variant: Variant) -> RidgeEditor:
        """The rule on the variant's bench, which is made anew where what a store would fix at `init` differs."""
        if self._editor is None or self._editor[0] != variant.bench:
            loaded = load_model(str(self.folder), modules=variant.modules)
            preserve: Sequence[Probe] = {"all": self.probes, "prompts": self.prompts, "none": []}[variant.preserve]
            fixed = prepare(loaded, variant.full, text=[self.text], preserve=preserve)
            self._editor = variant.bench, make(Bench(loaded, variant.full, fixed))
        before = self._editor[1]
        before.bench.settings = variant.full  # none that a bench is made of
        editor = make(before.bench)
        editor.preservation = before.preservation  # its grams of many prompts are kept
        return editor

    def streamed(self, editor: RidgeEditor) -> dict[str, Tensor]:
        """ΔW after all facts came in batches of SIZE."""
        if self._streamed is None:
            stream = self.empty()
            for start in range(0, len(stream.facts), SIZE):
                stream.apply(editor, stream.facts[start : start + SIZE])
            self._streamed = stream.state
            self._seconds = stream.processor
        return dict(self._streamed.shifts)

    def empty(self) -> Stream:
        """The stream before its first fact; what the base model says is asked once for all."""
        stream = self.stream
        return Stream(stream.facts, stream.asked, stream.unedited, base=stream.base)

    def measure(self, variant: Variant) -> dict[str, Any]:
        """The scores of one variant, the processor seconds of its solve, the base model's perplexity."""
        editor, stream = self.editor(variant), self.empty()
        loaded = editor.bench.loaded
        shifts: dict[str, Tensor] | None = None
        if variant.start is not None:
            shifts = self.streamed(editor)
        if variant.start == STREAM:
            stream.processor = self._seconds
        else:
            began = time.process_time(), time.perf_counter()
            shifts = solved(editor, stream, variant, shifts)
            stream.processor, stream.seconds = time.process_time() - began[0], time.perf_counter() - began[1]
        stream.state = State(shifts or {}, {fact.digest: fact for fact in stream.facts})
        found = judge(loaded, stream, self.test, generated=False)
        if self._perplexity is None:
            self._perplexity = perplexity_of(loaded, text_windows(loaded, self.test))
        found |= {"base perplexity": self._perplexity, "settings": dict(variant.settings)}
        if variant.otherwise is not None and variant.otherwise.free is not None:
            found["free"] = free_dimensions(editor, stream, variant.otherwise.free)
        return found


def free_dimensions(editor: RidgeEditor, stream: Stream, threshold: float) -> dict[str, int]:
    """How many dimensions each module's shift is looked for in."""
    s, subjects = editor.settings, subjects_of(stream.facts)
    grams = {n: editor.preservation.gram(n, s, s.reconsolidation_keys, {}, subjects) for n in editor.bench.names}
    return {n: free_space(gram, threshold).shape[1] for n, gram in grams.items()}


def solved(
    editor: RidgeEditor, stream: Stream, variant: Variant, streamed: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """ΔW of a variant."""
    if variant.otherwise is not None:
        return solve_otherwise(editor, stream.facts, variant.otherwise)
    if streamed is None:
        change = editor.relearn(stream.facts)
    else:
        start = {n: float(variant.start or 0) * shift for n, shift in streamed.items()}
        change = editor.relearn(stream.facts, start=start, identity="stream")
    return as_tensors(change.weights({}))


def measured() -> dict[str, Any]:
    """What the result file has: what was asked for, and the variants."""
    path = common.RESULTS / f"{NAME}.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else {}


def write_page() -> None:
    """docs/ablations.md, from the result file."""
    text = ablations_page.page(measured(), [(v.group, v.name) for v in VARIANTS])
    (common.REPOSITORY / "docs" / f"{NAME}.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Measure what the file lacks, or write the page."""
    # Those that share a bench one after the other: to make one costs as much as half a solve.
    benches = [variant.bench for variant in VARIANTS]
    keys = [variant.key for variant in sorted(VARIANTS, key=lambda variant: benches.index(variant.bench))]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="facts that are taught")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of facts")
    parser.add_argument("--only", nargs="*", default=keys, choices=keys, metavar="GROUP: NAME", help="in this order")
    parser.add_argument("--again", action="store_true", help="measure variants that the file has already")
    parser.add_argument("--table", action="store_true", help="write docs/ablations.md and measure nothing")
    options = parser.parse_args()
    if options.table:
        write_page()
        return
    asked, found = {"count": options.count, "seed": options.seed}, measured()
    if found and found["asked"] != asked:
        raise SystemExit(f"the result file is of {found['asked']}, not {asked}: remove it, or ask for the same")
    bed, variants = Bed(options.count, options.seed), {variant.key: variant for variant in VARIANTS}
    for key in options.only:
        if options.again or key not in found.get("variants", {}):
            scores = bed.measure(variants[key])
            print(f"{key}  {line(scores)}, {scores['processor']:.0f} s of a core", flush=True)
            # Read again: another run may have added to it.
            found = measured() or {"asked": asked, "variants": {}}
            found["variants"][key] = scores
            common.write(NAME, found)


if __name__ == "__main__":
    main()
