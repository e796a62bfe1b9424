"""Training a hypernetwork, and choosing the settings of a rule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from lifelong_edit.cli.common import counted, device_option, json_option, parse_settings, print_json, say, split_names
from lifelong_edit.cli.processes import world_at_hand
from lifelong_edit.cli.setup import BUNDLED, RuleName, read_text
from lifelong_edit.cli.tracking import tracking, tracking_options
from lifelong_edit.editors.registry import RULES, TRAINED, core_of, rule_of
from lifelong_edit.errors import UsageError

if TYPE_CHECKING:
    from lifelong_edit.facts import Fact
    from lifelong_edit.models import LoadedModel
    from lifelong_edit.settings import StoreSettings
    from lifelong_edit.training.choosing import Choosing
    from lifelong_edit.training.episodes import TrainSettings

_MEASURES = (
    "ES, GS and LS are efficacy (the facts' own prompts), generality (another phrasing of them) and locality (unedited "
    "neighbours): shares of right answers on held-out facts"
)


@click.command()
@click.option(
    "--model", default=BUNDLED, show_default=True, metavar="MODEL", help="`atlas`, a folder, a GGUF file or a hub id."
)
@click.option(
    "--data",
    required=True,
    multiple=True,
    metavar="FILE",
    help="Facts to learn editing on, in any shape that `stream` reads; may be given several times. Phrasings and "
    "`target_true` make it learn more.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the network goes, and the settings that were chosen.",
)
@click.option(
    "--editor",
    type=RuleName(RULES),
    default=TRAINED,
    show_default=True,
    help="The editing rule. One that has no network has nothing to train: with --choose its settings are chosen.",
)
@click.option(
    "--choose",
    type=click.FloatRange(min=0),
    metavar="MINUTES",
    help="Choose the settings of the rule on held-out facts first, and where it edits, for so many minutes in all, "
    "earlier runs counted. A trial takes as long as teaching 200 facts, twice with a reconsolidation; from fewer than "
    "some hundred held out little can be told.",
)
@click.option(
    "--minutes", type=click.FloatRange(min=0), default=60.0, show_default=True, help="For how long this time."
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop with the episode that comes to so many optimiser steps in all.",
)
@click.option(
    "--text",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Ordinary text (UTF-8) for statistics. Default: the bundled English prose.",
)
@click.option(
    "--start",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="A trained network to begin with. Default: the rule without a network.",
)
@click.option(
    "--modules",
    metavar="NAMES",
    help="Weight matrices to edit: names, layers or ranges, by comma; `@subject` behind one: at the subject.",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of the model's weights. Default: float32.")
@click.option("--seed", type=int, metavar="N", help="Of the split, the episodes and every draw. Default: 0.")
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the rule, from which it is chosen or with which a network is trained.",
)
@click.option(
    "--train",
    "training",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the training: rank, batch_size, rate …",
)
@click.option(
    "--choosing",
    "judging",
    multiple=True,
    metavar="NAME=VALUE",
    help="How --choose judges: facts, only, trials (their greatest number), generated, reconsolidate, the weights of "
    "efficacy, generality, locality and perplexity …",
)
@tracking_options
@device_option
@json_option
def train(
    model: str,
    data: tuple[str, ...],
    out: Path,
    editor: str,
    choose: float | None,
    minutes: float,
    steps: int | None,
    text: tuple[Path, ...],
    start: Path | None,
    modules: str | None,
    dtype: str | None,
    seed: int | None,
    pairs: tuple[str, ...],
    training: tuple[str, ...],
    judging: tuple[str, ...],
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a hypernetwork for a model on facts, in the solve that it will live in; choose the settings of any rule.

    Facts are split by subject; efficacy, generality and locality on those held out are printed as it goes, and the best
    network is kept. Interrupted or killed, the same command goes on from the last checkpoint in DIR. The result is
    `network.safetensors` and a readable `config.json` with its provenance: give DIR to `init --hypernetwork`. Several
    processes share the work, by `lifelong-edit --processes N train …` or torchrun: the network is the same.

    With --choose the settings are searched for first, on the same held-out facts, and where no modules are named also
    which are edited: for `malmen` and `gradient` the default ones, or others at the subject beside them; for rules that
    edit one layer, or a few, at which depth. `settings.json` in DIR holds what was chosen, for which rule, with every
    trial. `init --hypernetwork DIR` takes it with the network, `init --settings DIR` without one; so they take
    `conflicts.json`, which tells paraphrases, where facts have relations and rephrases.

    \b
    Examples:
      lifelong-edit train --model path/to/model --data facts.jsonl --out network
      lifelong-edit train --data facts.jsonl --out network --minutes 10 --train rank=64
      lifelong-edit train --data facts.jsonl --out chosen --editor gradient --choose 20
      lifelong-edit train --data facts.jsonl --out chosen --editor memit --choose 600 --choosing trials=20
    """
    from lifelong_edit.editors.ridge.settings import CHOSEN
    from lifelong_edit.timeline.defaults import default_text
    from lifelong_edit.training.choosing import Choice, Choosing
    from lifelong_edit.training.episodes import divided
    from lifelong_edit.training.run import Run

    _require_something_to_do(editor, choose)
    trackers = tracking(options, out)
    named = {"modules": split_names(modules) if modules else None, "dtype": dtype, "seed": seed, "device": device}
    solve = parse_settings(rule_of(editor).settings, "--set", pairs, editor=editor, **named)
    learn = _learning(editor, training, seed)
    choosing = parse_settings(Choosing, "--choosing", judging, seed=learn.seed)
    how = "by generation" if choose is not None and choosing.settled(solve).generated else "teacher-forced"
    facts = world_at_hand().lead(lambda: _facts_of(data))
    sample = [read_text(path) for path in text] or default_text()
    divided(facts, learn)  # too few are refused before a model is loaded for them
    loading = f"loading {model}, measuring the text and asking the facts' prompts"
    say(f"{counted(len(facts), 'fact')}; {loading}\n{_MEASURES}, {how}")
    found: dict[str, object] = {"out": str(out)}
    loaded, solve = _loaded(model, choose is not None, facts, sample, out, solve, learn, choosing)
    if choose is not None:
        choice = Choice(loaded, facts, sample, out, solve, learn, choosing, say)
        solve = choice.go(choose)
        found |= {"trials": len(choice.record.trials), "settings": str(out / CHOSEN)}
    if rule_of(editor).network:
        with trackers:
            run = Run(loaded, facts, sample, out, solve, learn, say, start, trackers.log)
            run.go(minutes, steps)
        found |= {"steps": run.trainer.steps, "held_out_mean": None if run.best is None else run.best[0]}
    _tell(found, as_json=as_json)


def _facts_of(files: Sequence[str]) -> list[Fact]:
    """The facts of files; what was left out of them is said."""
    from lifelong_edit.facts import ReadReport, read_facts

    read = ReadReport()
    facts = [record.fact for record in read_facts(files, report=read)]
    for line in read.describe():
        say(line)
    return facts


def _learning(editor: str, training: Sequence[str], seed: int | None) -> TrainSettings:
    """The settings of the training. Without a network there are no batches, and no bound on how few facts there are."""
    from lifelong_edit.training.episodes import TrainSettings

    found = parse_settings(TrainSettings, "--train", training, seed=seed)
    return found if rule_of(editor).network else msgspec.structs.replace(found, batch_size=1)


def _require_something_to_do(editor: str, choose: float | None) -> None:
    if editor != core_of(editor):
        raise UsageError(
            f"found --editor {editor}, expected a rule without a wrapper: train {core_of(editor)}, and give what that "
            f"leaves to `init --editor {editor}`, with --settings or --hypernetwork"
        )
    if not rule_of(editor).network and choose is None:
        raise UsageError(f"found --editor {editor} without --choose, expected both: that rule has nothing to train")


def _tell(found: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        click.echo(found["out"])


def _loaded(
    model: str,
    choose: bool,
    facts: Sequence[Fact],
    text: Sequence[str],
    out: Path,
    solve: StoreSettings,
    learn: TrainSettings,
    choosing: Choosing,
) -> tuple[LoadedModel, StoreSettings]:
    """The model, and the settings with the modules that were chosen where that is asked for and none are named."""
    from lifelong_edit.training.choosing_modules import choose_modules

    if choose and not solve.modules and rule_of(solve.editor).tries.beside:
        return choose_modules(partial(_load, model, solve), facts, text, out, solve, learn, choosing, say)
    return _load(model, solve, solve.modules), solve


def _load(model: str, solve: StoreSettings, modules: Sequence[str]) -> LoadedModel:
    """The model with these modules; the default ones where none are named."""
    from lifelong_edit.models import load_model
    from lifelong_edit.timeline.model import share

    places, world = rule_of(solve.editor).places, world_at_hand()
    named = modules or None
    loaded = load_model(model, modules=named, device=solve.device, dtype=solve.dtype, places=places, world=world)
    share(loaded, solve, world)
    return loaded
