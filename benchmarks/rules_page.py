"""Makes `docs/rules-compared.md` of what `bench_rules` and `bench_real` measured; what the tables say is by hand.

python -m benchmarks.rules_page
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import RESULTS
from lifelong_edit.editors.registry import RULES, rule_of

PAGE = RESULTS.parents[1] / "docs" / "rules-compared.md"
LIVES = "4x50-0"
"""The life that rules are compared on."""
LONG = "20x50-0"
"""The same five times as long, of the rules that are fast enough."""
MODEL = "smollm2"
REAL = "4x25-0"
"""The same on the larger model."""
IN_FRONT = ("retrieval+search", "retrieval+neurons", "retrieval+memit")
"""Combinations that are measured there beside the rules."""

HEAD = """# Rules compared

The same facts and the same judge, and of each rule what it comes to. Best first, by the sum of efficacy, generality \
and locality. \
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
of a share is .035 at most. *Reconsolidated* is the same store once all its facts have been solved for together, \
whatever its guard says, which otherwise would leave the store as it was.
"""
FIVE_TIMES = """### Five times as many facts

The same with `--batches 20`, 1,000 facts, of the rules that are fast. One standard error of a share is .016 at most.
"""
LARGE = """## A model of 135 M parameters

Four batches of 25 facts of CounterFact's edit split into SmolLM2-135M-Instruct in plain text, with nothing but a \
subject, a prompt and a target: `python -m benchmarks.bench_real --model FOLDER --arm RULE --set form=plain`, with \
what stands beside the rule. Rules have the defaults of their settings unless something is named, and that was chosen \
on the train split. Without `--preserved 0` the store has 600 prompts of the train split to preserve; with it a rule \
has the prompts that it brings itself. `--text wikitext` is WikiText-2's \
validation text in place of the bundled one; perplexity is on its test text. Generality is asked in the record's own \
rephrase, locality of its neighbours, the first three tokens as the base model says them. One standard error of a \
share is .05 at most. *Oldest* is the efficacy of the first batch after the fourth, *bytes* are those on the disk for \
each fact; both were not yet asked where there is none. Seconds are by the clock, of the median batch (of a \
reconsolidation, of the whole), one thread beside other work; *load* is what the machine of two cores had to do at the \
end.
"""


SAID = {
    "small": """\
- In a model of six layers the rules that ask each layer at the answer for a difference of its values have most of all \
three: `malmen`, `gradient` and `ultraedit`. The first two differ by chance alone.
- `grace` has their efficacy without the generality: a question in other words seldom comes near enough to its key. It \
keeps an entry, and leaves the weights as they are.
- `ft-replay` comes next, and is the only rule that moves weights freely and keeps its oldest facts; perplexity pays. \
`ft` forgets them. `locft`, which trains all facts from the base, scored best in the trials where it did nothing: \
whatever taught more cost more than it brought (efficacy 1.00, locality .53 at the largest rate).
- `neurons`, far ahead on the larger model below, answers six of ten here, and harms nothing; [.72 to .78 with other \
settings](measured.md#a-real-language-model). So small a model is not what it was made for, and not what it is the \
default of.
- `search` answers nine of ten facts of its first two batches. Then the gate refuses what would raise perplexity by \
half; what was refused is asked all the same.
- `mend`, with five minutes of training, teaches half, in the least time of all, and forgets.
- `stableedit` is as published: one step, whose size was chosen for models of billions of parameters. `train --choose` \
has no trials for its solve.
- The rules that locate teach next to nothing, with any of the settings that were tried, and locality falls to .71 and \
less. With the constants that it has for unknown models `rome`, one fact at a time, breaks this one (perplexity × 182 \
after 40 facts); a slower search spares it. [Why](rules.md#constants).
- `retrieval` needs a model that reads what stands before a question. This one does not. `serac`, which has a model of \
its own for that, trained for five minutes beside a classifier of scope, answers eight of ten facts and other wordings \
of them alike, and leaves all else bit for bit as it is: the best locality of all rules that teach.
- `rledit` has its network's five minutes. A reconsolidation trades efficacy for locality there, and gains nothing: it \
is trained to solve batch after batch, and all facts at once are another batch than it has seen.
- `wise` was tried with a rate that teaches (efficacy .55, locality .76 of forty facts) and perplexity pays, so that \
the trials chose one that hardly does; its side memory answers for more of the text than it should, with either.
- `coachhook`, `nse` and `r-rome` ask for their changes where `rome` and `memit` do, and share their fate. `li` draws \
what `locft` proposes back towards the base, and `locft` proposes nothing here.
""",
    "long": """\
- What batches wear away a reconsolidation brings back: `gradient` gains in efficacy, generality and locality alike, \
and half of what perplexity had risen, for about the time that its batches took. `ultraedit` gains nothing by it, \
since its statistics are of one long batch then. Both guards refuse for locality at the guard prompts, \
which falls by .03.
- The other fast rules were not measured at this length for want of processor time.
""",
    "large": """\
- `neurons` is ahead of all of them in the sum, and the only one that has generality and locality together. Facts \
differ: two other streams of as many facts come to a generality of .65 and .59, with efficacy .99 and locality .95 and \
.97, and one of 500 facts to .55. It is the default of models of this size.
- `retrieval` and `grace`, the rivals that leave the weights alone, are bit for bit the base model where they do not \
open, and answer nearly all prompts. In other words the one answers a sixth, the other nothing.
- `memit` teaches its prompts and a quarter of the other wordings, and moves six neighbours of ten within three tokens \
(two of ten in the first word). It is published for models of 6 B parameters and more.
- Rules that move weights take the prompts and pay for it at the neighbours, in the sentence that was taught and no \
other; what is searched for at the subject carries further. A [network](measured.md#a-real-language-model) of sixty \
steps (`malmen`) changes nothing of that.
- Without prompts of the train split to preserve, locality is lower by .10 (`search`) and .18 (`gradient`), as [the \
page on what was measured](measured.md#a-real-language-model) has it.
- Solved again together, the hundred facts of `search` are fewer, and its guard says so; text is mended. `gradient` \
stays where it was. Four batches forget too little for a reconsolidation to win back: five times as many, on the \
smaller model above, are another matter.
- `alphaedit` has the efficacy and generality of its kin, and moves eight neighbours of ten within three tokens, three \
of ten in the first word. What little text its null space is measured on decides what is free.
- `stableedit` takes the step that is published for models of billions of parameters, and it is none here.
- A memory in front of edited weights, [`retrieval+RULE`](rules.md#retrieval-in-front), was measured on 50 facts of \
the train split: a gain for `search` (generality .34 where it has .22, locality the same), none for `neurons`.
- The steps of `ultraedit` and `ft` were chosen on 50 facts of the train split. `ultraedit` with `relative_step=0.03` \
came to .98 / .02 / .48 and + 5 % perplexity there, with 0.1 to .98 / .08 / .24, and its own 0.3 is refused by the \
gate within two batches; `ft` with `relative_rate=0.003` to .40 / .04 / .14, and with 0.01 its second batch is refused.
- The rules that are not here were not measured for want of processor time.
""",
}
"""What the tables say: read these sentences again whenever the figures change."""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page(results: Path = RESULTS) -> str:
    """The document: a table for each model, best rules first."""
    small, long = ({r: f for r in RULES if (f := _read(results, f"rules-{r}-{life}"))} for life in (LIVES, LONG))
    large = {r: found for r in (*RULES, *IN_FRONT) if (found := _read(results, f"real-{MODEL}-{r}-{REAL}"))}
    parts = [HEAD, SMALL, "\n".join(_small(small)), SAID["small"], FIVE_TIMES, "\n".join(_small(long)), SAID["long"]]
    parts += [LARGE, "\n".join(_large(large)), SAID["large"]]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _read(results: Path, name: str) -> dict[str, Any] | None:
    """A result, where it is there."""
    path = results / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found


def _small(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| rule | chosen | efficacy | generality | locality | others | oldest | perplexity | seconds | bytes |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    rows = {rule: told["results"] for rule, told in found.items()}

    def score(rule: str) -> float:
        figures = rows[rule]["figures"]
        return float(sum(figures[name]["generated"] for name in ("efficacy", "generality", "locality")))

    for rule in sorted(rows, key=score, reverse=True):
        told = rows[rule]
        yield _life(f"`{rule}`", _chosen(rule, told), told["figures"], told) + f" {told['bytes_per_fact']:,.0f} |"
        if "reconsolidated" in told:
            figures = told["reconsolidated"]
            yield _life(RECONSOLIDATED, _against(figures["objections"]), figures, told) + " |"


RECONSOLIDATED = "… reconsolidated"


def _against(objections: Sequence[str]) -> str:
    """What the guard of a reconsolidation said, which a store heeds and a benchmark does not."""
    return f"against its guard: {'; '.join(objections)}" if objections else ""


def _life(name: str, beside: str, figures: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    """A row of figures, without its end."""
    shares = [figures[name]["generated"] for name in ("efficacy", "generality", "locality", "random facts")]
    shares.append(figures["cohorts"][0]["efficacy"]["generated"])
    cells = [name, beside, *map(_share, shares), _growth(figures["perplexity"] / told["base"] - 1)]
    return f"| {' | '.join(cells)} | {figures['processor'] / figures['efficacy']['count']:.2f} |"


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
    columns = ("rule", "beside it", "efficacy", "generality", "locality", "… first word", "oldest", "perplexity")
    columns += ("seconds per batch", "load", "bytes")
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"

    def score(rule: str) -> float:
        figures = found[rule]["results"]["figures"]
        return float(figures["ES"] + figures["GS"] + figures["LS"])

    for rule in sorted(found, key=score, reverse=True):
        told = found[rule]["results"]
        seconds = median(batch["seconds"] for batch in told["batches"])
        load = f"{found[rule]['machine']['load_average']:.1f}"
        bytes_of = f"{told['bytes_per_fact']:,.0f}" if "bytes_per_fact" in told else "–"
        beside = _beside(found[rule]["command"], told)
        yield f"{_asked(f'`{rule}`', beside, told['figures'])} | {seconds:.0f} | {load} | {bytes_of} |"
        if "reconsolidated" in told:
            against = _against(told["objections"])
            row, seconds = _asked(RECONSOLIDATED, against, told["reconsolidated"]), told["reconsolidation_seconds"]
            yield f"{row} | {seconds:.0f} | | |"


def _asked(name: str, beside: str, figures: Mapping[str, float]) -> str:
    """A row of figures, without its end."""
    shares = [_share(figures[key]) for key in ("ES", "GS", "LS", "LS_first_word")]
    shares.append(_share(figures["oldest"]) if "oldest" in figures else "–")
    return f"| {' | '.join([name, beside, *shares, _growth(figures['perplexity'])])}"


def _beside(command: str, told: Mapping[str, Any]) -> str:
    """The options of a command that say how a rule was taken, without those that all have; and what was refused."""
    words = iter(command.split()[3:])
    found = []
    for word in words:
        value = next(words, "")
        if word in ("--set", "--text", "--preserved", "--modules", "--seed") and value != "form=plain":
            found.append(f"`{word} {value}`" if word != "--set" else f"`{value}`")
    refused = sum("refused" in batch for batch in told["batches"])
    found += [f"{refused} of {len(told['batches'])} batches refused"] if refused else []
    return " ".join(found) or "–"


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _growth(value: float) -> str:
    return f"{'+' if value >= 0 else '−'} {abs(value):.1%}".replace("%", " %")


if __name__ == "__main__":
    main()
