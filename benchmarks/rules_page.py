"""Makes `docs/rules-compared.md` of what `bench_rules` and `bench_real` measured; what the tables say is by hand.

python -m benchmarks.rules_page
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from lifelong_edit.editors.registry import RULES, rule_of

PAGE = RESULTS.parents[1] / "docs" / "rules-compared.md"
LIVES = "4x50-0"
"""The life that rules are compared on."""
MODEL = "smollm2"
REAL = ("4x25-0", "4x25-1")
"""The same on the larger model, and other facts for rules that have no life of these."""

HEAD = """# Rules compared

The same facts, the same store, the same judge, and of each rule what it comes to. \
[What each does](rules.md), and [what was measured otherwise](measured.md). `python -m benchmarks.rules_page` makes \
this page of `benchmarks/results`.
"""
SMALL = """## A model of 8 M parameters

Four batches of 50 facts into trex-gpt2-mini, by generation, after the last batch: `python -m benchmarks.bench_rules \
--rule RULE --trials 3 --tried 40 --batches 4`. Half of a fact's rephrases are given, and one of the others is asked; \
locality is asked of unedited neighbours, *others* are facts of any relation. Each rule's settings were chosen first, \
on training facts alone, with as many trials of 40 facts: its own defaults and three changes of them, tried by \
`train --choose`. Networks were trained there for five minutes. *Oldest* is the efficacy of the first batch after the \
fourth; the last two columns are seconds of a processor core, and bytes on the disk, for each fact. One standard error \
of a share is .035 at most.
"""
LARGE = """## A model of 135 M parameters

Four batches of 25 facts of CounterFact's edit split into SmolLM2-135M-Instruct in plain text, with nothing but a \
subject, a prompt and a target: `python -m benchmarks.bench_real --model FOLDER --arm RULE --set form=plain`, with \
what stands beside the rule. Rules have the defaults of their settings unless something is named, and that was chosen \
on the train split. Generality is asked in the record's own rephrase, locality of its neighbours, the first three \
tokens as the base model says them. Seconds are by the clock, of the median batch, one thread beside other work.
"""


SAID = {
    "small": """\
- In a model of six layers the rules that ask each layer at the answer for a difference of its values are ahead: \
`malmen`, `gradient` and `ultraedit`. Between them is little more than chance.
- `grace` has their efficacy without the generality: a question in other words seldom comes near enough to its key. It \
keeps an entry, and leaves the weights as they are.
- `neurons`, far ahead on the larger model below, answers six of ten here, and harms nothing. So small a model is not \
what it was made for, and not what it is the default of.
- `search` answers nine of ten facts of its first two batches. Then the gate refuses what would raise perplexity by \
half; what was refused is asked all the same.
- The rules that locate teach next to nothing, with any of the settings that were tried (efficacy .10 to .13 of 40 \
facts in one batch), and locality falls to .49 and .59. [Why](rules.md#constants).
- `retrieval` needs a model that reads what stands before a question. This one does not.
- The other rules were not measured here for want of processor time; the command is the same.
""",
    "large": """\
- `memit` teaches its prompts and a quarter of the other wordings, and moves six neighbours of ten within three tokens \
(two of ten in the first word). It is published for models of 6 B parameters and more.
- `retrieval`, the rival without weights, is bit for bit the base model where it does not open, and answers nearly all \
prompts; the record's own rephrase seldom passes its gate.
- Rules that move weights take the prompts and pay for it at the neighbours, in the sentence that was taught and no \
other; what is searched for at the subject carries further.
- `neurons` is ahead of all of them in the sum, and the only one that has generality and locality together. It is the \
default of models of this size.
""",
}
"""What the tables say: read these sentences again whenever the figures change."""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page(results: Path = RESULTS) -> str:
    """The document: a table for each model, best rules first."""
    small = {rule: found for rule in RULES if (found := _read(results, f"rules-{rule}-{LIVES}"))}
    large = {rule: found for rule in RULES if (found := _read(results, *(f"real-{MODEL}-{rule}-{r}" for r in REAL)))}
    parts = [HEAD, SMALL, "\n".join(_small(small)), SAID["small"], LARGE, "\n".join(_large(large)), SAID["large"]]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _read(results: Path, *names: str) -> dict[str, Any] | None:
    """The first of some results that is there."""
    files = [results / f"{name}.json" for name in names]
    found: dict[str, Any] | None = next((json.loads(f.read_text(encoding="utf-8")) for f in files if f.is_file()), None)
    return found


def _small(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| rule | chosen | efficacy | generality | locality | others | oldest | perplexity | seconds | bytes |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    rows = {rule: told["results"] for rule, told in found.items()}

    def score(rule: str) -> float:
        figures = rows[rule]["figures"]
        return float(sum(figures[name]["generated"] for name in ("efficacy", "generality", "locality")))

    for rule in sorted(rows, key=score, reverse=True):
        told, figures = rows[rule], rows[rule]["figures"]
        shares = [figures[name]["generated"] for name in ("efficacy", "generality", "locality", "random facts")]
        shares.append(figures["cohorts"][0]["efficacy"]["generated"])
        facts = figures["efficacy"]["count"]
        cells = [
            f"`{rule}`",
            _chosen(rule, told),
            *map(_share, shares),
            _growth(figures["perplexity"] / told["base"] - 1),
        ]
        yield f"| {' | '.join(cells)} | {figures['processor'] / facts:.2f} | {told['bytes_per_fact']:,.0f} |"


def _chosen(rule: str, told: Mapping[str, Any]) -> str:
    """What the trials changed of the rule's own settings; and how many facts the gate refused."""
    own = json.loads(json.dumps(rule_of(rule).settings(editor=rule).told()))  # as a result has them
    changed = {name: value for name, value in told["settings"].items() if value != own[name]}
    words = [f"`{name}={_value(value)}`" for name, value in changed.items()]
    words += [f"{told['refused']} facts refused"] if told.get("refused") else []
    return ", ".join(words) or "–"


def _value(value: Any) -> str:
    """As it would be written; of matrices their layers."""
    short = [re.sub(r"^transformer\.h\.(\d+)\.mlp\.c_proj", r"\1", str(one)) for one in _listed(value)]
    return ",".join(short)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _large(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| rule | beside it | efficacy | generality | locality | … first word | perplexity | seconds per batch |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"

    def score(rule: str) -> float:
        figures = found[rule]["results"]["figures"]
        return float(figures["ES"] + figures["GS"] + figures["LS"])

    for rule in sorted(found, key=score, reverse=True):
        told = found[rule]["results"]
        shares = [told["figures"][name] for name in ("ES", "GS", "LS", "LS_first_word")]
        seconds = sorted(batch["seconds"] for batch in told["batches"])[len(told["batches"]) // 2]
        cells = [
            f"`{rule}`",
            _beside(found[rule]["command"]),
            *map(_share, shares),
            _growth(told["figures"]["perplexity"]),
        ]
        yield f"| {' | '.join(cells)} | {seconds:.0f} |"


def _beside(command: str) -> str:
    """The options of a command that say how a rule was taken, without those that all have."""
    words = iter(command.split()[3:])
    found = []
    for word in words:
        value = next(words, "")
        if word in ("--set", "--text", "--preserved", "--modules", "--seed") and value != "form=plain":
            found.append(f"`{word} {value}`" if word != "--set" else f"`{value}`")
    return " ".join(found) or "–"


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _growth(value: float) -> str:
    return f"{'+' if value >= 0 else '−'} {abs(value):.1%}".replace("%", " %")


if __name__ == "__main__":
    main()
