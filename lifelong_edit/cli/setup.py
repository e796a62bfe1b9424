"""`init`, and the options of a new store, which `stream` takes as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lifelong_edit.cli.common import (
    author_option,
    device_option_of,
    editor_in,
    json_option,
    parse_settings,
    print_json,
    say,
    split_names,
    store_option,
)
from lifelong_edit.cli.looking import print_status
from lifelong_edit.cli.processes import world_at_hand
from lifelong_edit.editors.registry import RULES, core_of, rule_of
from lifelong_edit.errors import BadInputError, UsageError

if TYPE_CHECKING:
    from lifelong_edit.facts import Probe
    from lifelong_edit.settings import StoreSettings
    from lifelong_edit.timeline import Timeline

Command = TypeVar("Command", bound=Callable[..., Any])
BUNDLED = "atlas"
GENERAL = "general"
"""What `--preserve` calls the prompts that come with the program."""
BESIDE_GENERAL = 75
"""Rows that are derived from the facts beside them: general prompts say nothing of the facts' neighbours."""
NAMED = ("editor", "dtype", "seed", "form", "system")
"""Settings that have an option of their own name."""
_MAX_TEXT_BYTES = 1 << 25


class RuleName(click.Choice[str]):
    """One of the rules, or one with wrappers around it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name. Raises UsageError where there is no such rule, or a wrapper cannot stand around it."""
        return rule_of(str(value)).name


_MAKING = (
    click.option("--model", metavar="MODEL", help="`atlas` (bundled, the default), a folder, a GGUF file or a hub id."),
    click.option(
        "--editor",
        type=RuleName(RULES),
        help="The editing rule: MALMEN with a trained hypernetwork, or a rule that needs no training. With a wrapper "
        "around it (`editors` lists them) as `rect+memit`. "
        "Default: that of --settings; that of the hypernetwork where there is one, neurons for a classifier and for a "
        "decoder with states of 512 numbers or more, else gradient.",
    ),
    click.option(
        "--hypernetwork",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="DIR",
        help="What `train` wrote for this model; it is copied into the store. Default for atlas: the bundled one.",
    ),
    click.option(
        "--settings",
        type=click.Path(path_type=Path, exists=True),
        metavar="FILE",
        help="Settings that `train --choose` found, with their editing rule: its settings.json, or the folder with it. "
        "--set wins.",
    ),
    click.option(
        "--preserve",
        multiple=True,
        metavar="FILE",
        help='Prompts whose answers must stay: facts of any shape, {"prompt": …} records, or lines of a .txt file. '
        "Those about a tenth of the subjects stand guard over reconsolidations: give ten at least. May be given "
        "several times. `general`: prompts of all kinds that come with this program, and beside them rows derived from "
        "the facts (--set derived=75). Default: for atlas the bundled ones, general ones for the rule "
        "`search`, else none are given but derived from the facts.",
    ),
    click.option(
        "--form",
        type=click.Choice(["plain", "chat", "both"]),
        help="How facts are taught and the model is asked: as plain text to be continued, through its chat template, "
        "or both. Default: both where the model has a chat template, else plain.",
    ),
    click.option(
        "--system",
        metavar="TEXT",
        help="System prompt of all that is taught and asked in conversations. Default: what the chat template brings.",
    ),
    click.option(
        "--text",
        multiple=True,
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="Ordinary text (UTF-8), for statistics and the gate's perplexity. Default: the bundled English prose.",
    ),
    click.option(
        "--modules",
        metavar="NAMES",
        help="Weight matrices to edit: names, layers or ranges, by comma; `@subject` behind one: at the subject.",
    ),
    click.option(
        "--probe",
        type=click.FloatRange(min=0),
        metavar="MINUTES",
        help="Find out first at which layer the rule does best on this model: trials of so many minutes on facts that "
        "everybody knows. What was found is kept, so that the next store has it at once.",
    ),
    click.option(
        "--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of the model's weights. Default: float32."
    ),
    click.option("--seed", type=int, metavar="N", help="Of every draw. Default: 0."),
    click.option("--encrypt", is_flag=True, help="Encrypt facts, keys and steps at rest, with the key of --key-file."),
    click.option("--revision", metavar="REV", help="Of a model from the hub."),
    click.option(
        "--trust-remote-code", is_flag=True, help="Run the code that comes with a hub model; needs --revision."
    ),
    click.option(
        "--set",
        "pairs",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any further setting, by its name in docs/settings.md; may be given several times.",
    ),
)


def making_options(command: Command) -> Command:
    """The options of a new store, for `init` and for `stream` where it makes one."""
    for option in reversed(_MAKING):
        command = option(command)
    return command


def make_store(
    store: Path, device: str | None, options: dict[str, Any], opening: str, author: str | None = None
) -> Timeline:
    """A new store by the options of `making_options`; `opening` is said when all that is cheap to check has been."""
    from lifelong_edit.timeline import Timeline

    making = _making(device, options)
    if options.get("probe") is not None:
        making["settings"] = _probed(making["settings"], making["text"], options)
    return Timeline.create(
        store,
        scorer=options["settings"],
        author=author,
        encrypt=options["encrypt"],
        say=_opened_by(opening),
        world=world_at_hand(),
        **making,
    )


def require_makeable(device: str | None, options: dict[str, Any]) -> None:
    """Refuse, without loading a model, what `make_store` could not make a store of; raises as it does."""
    from lifelong_edit.timeline.beginning import started

    started(**_making(device, options))


def _making(device: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """What a store is made of, by the options of `making_options`."""
    if options["trust_remote_code"] and not options["revision"]:
        raise UsageError(
            "found --trust-remote-code without --revision, expected both; name the commit whose code you have read"
        )
    preserve = preserved_prompts(options["preserve"])
    if preserve is not None and not preserve:
        raise BadInputError(
            f"found no prompt in {', '.join(options['preserve'])}, expected at least one to preserve; leave --preserve "
            "out for the default"
        )
    return {
        "model": options["model"] or BUNDLED,
        "settings": chosen_settings(device, options),
        "hypernetwork": options["hypernetwork"],
        "preserve": preserve,
        "text": [read_text(path) for path in options["text"]] or None,
        "revision": options["revision"],
        "trust_remote_code": options["trust_remote_code"],
    }


def _probed(settings: StoreSettings, text: Sequence[str] | None, options: dict[str, Any]) -> StoreSettings:
    """The settings with the modules that `--probe` found."""
    from lifelong_edit.models import load_model
    from lifelong_edit.timeline.defaults import default_text
    from lifelong_edit.timeline.model import share
    from lifelong_edit.training.probing import probed, require_open

    require_open(settings)
    model = options["model"] or BUNDLED
    say(f"probing {model}: where {settings.editor} does best")
    loaded = load_model(
        model,
        revision=options["revision"],
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=options["trust_remote_code"],
        places=rule_of(settings.editor).places,
    )
    share(loaded, settings, world_at_hand())
    return probed(loaded, settings, text or default_text(), options["probe"], say)


def preserved_prompts(given: Sequence[str]) -> list[Probe] | None:
    """The prompts of files, and where `general` is among them those of this program; None for the default."""
    from lifelong_edit.facts import general_prompts, read_prompts

    own = [name for name in given if name != GENERAL]
    bundled = general_prompts() if GENERAL in given else []
    return [*bundled, *(read_prompts(own) if own else [])] if given else None


def _opened_by(opening: str) -> Callable[[str], None]:
    """`say` for the phases of making a store, with a line before the first of them."""
    lines = [opening]

    def tell(phase: str) -> None:
        while lines:
            say(lines.pop())
        say(f"  {phase}")

    return tell


def chosen_settings(device: str | None, options: dict[str, Any]) -> StoreSettings:
    """The settings of a new store, of the type that its rule has.

    Without `--editor` the rule is the one that `--settings` were chosen for, else `default_editor`'s.
    """
    from lifelong_edit.timeline.defaults import (
        default_hypernetwork,
        editor_of,
        rule_of_network,
        settings_from,
        solve_of,
    )

    model, network = options["model"] or BUNDLED, options["hypernetwork"]
    known = network or default_hypernetwork(model)
    modules = [pair for pair in options["pairs"] if pair.startswith("modules=")]
    modules += [options["modules"]] if options["modules"] else []
    chosen = options.get("settings")
    editor = editor_of(options["editor"], model, hypernetwork=network, settings=chosen, modules=modules)
    kind = rule_of(editor_in(options["pairs"]) or editor).settings
    named = {
        "editor": editor,
        "modules": split_names(options["modules"]) if options["modules"] else None,
        "dtype": options["dtype"],
        "seed": options["seed"],
        "device": device,
        "form": options.get("form"),
        "system": options.get("system"),
    }
    # --set may name another rule yet, whose settings are not those that a network is trained for
    own = known is not None and rule_of_network(known) == core_of(editor)
    given = solve_of(known) if own and issubclass(kind, rule_of(core_of(editor)).settings) else {}
    given |= {"derived": BESIDE_GENERAL} if GENERAL in options.get("preserve", ()) and "derived" in kind.order else {}
    given |= settings_from(options.get("settings"), kind)
    given |= {name: value for name, value in named.items() if value is not None}
    return parse_settings(kind, "--set", options["pairs"], **given)


def require_same_store(timeline: Timeline, options: dict[str, Any]) -> None:
    """Raise `UsageError` where options of a new store contradict the store that is there.

    The same command has to work a second time, so options that say what the store is like anyway are no error. Raises
    ModelMismatchError where there is another model at the place that --model names.
    """
    from lifelong_edit.timeline.defaults import settings_from

    if options["encrypt"] and not timeline.status()["encrypted"]:
        raise UsageError(
            f"the store at {timeline.path} is not encrypted, and that is fixed at `init`; leave --encrypt out, or make "
            "another store with --store"
        )
    kind = rule_of(editor_in(options["pairs"]) or options["editor"] or timeline.settings.editor).settings
    named = settings_from(options.get("settings"), kind)
    named |= {name: options[name] for name in NAMED if options[name] is not None}
    if options["modules"]:
        named["modules"] = split_names(options["modules"])
    asked = parse_settings(kind, "--set", options["pairs"], **named)
    given = {*named, *(pair.partition("=")[0] for pair in options["pairs"])}
    if not isinstance(timeline.settings, kind):
        given = {"editor"}  # of another rule's settings the store has no values to compare
    for name in sorted(given):
        wanted, found = getattr(asked, name), getattr(timeline.settings, name)
        if wanted != found:
            raise UsageError(
                f"the store at {timeline.path} was made with {name} {found!r}, not {wanted!r}, and that is fixed at "
                "`init`; leave the option out, or make another store with --store"
            )
    if timeline.source != timeline.config.model.source:
        timeline.bench()  # from where --model says: the model of the store, wherever it lies, or none


def read_text(path: Path) -> str:
    """The beginning of a text file, 32 MiB at most. Raises `BadInputError` where it is not UTF-8."""
    with path.open("rb") as stream:
        data = stream.read(_MAX_TEXT_BYTES)
    try:
        return data.decode("utf-8", errors="strict" if len(data) < _MAX_TEXT_BYTES else "ignore")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{path}: found bytes that are not UTF-8 ({error.reason}), expected text; save the file as UTF-8"
        ) from None


@click.command()
@making_options
@device_option_of("cpu (the default)")
@author_option
@store_option
@json_option
def init(store: Path, device: str | None, author: str | None, as_json: bool, **options: Any) -> None:
    """Make a store for a model; what is given here is fixed for its life.

    It measures the statistics of the text, asks the base model the preserved prompts, and commits step 0.

    \b
    Examples:
      lifelong-edit init
      lifelong-edit init --model path/to/model --preserve prompts.jsonl --editor gradient
      lifelong-edit keygen ~/.lifelong-key && lifelong-edit init --encrypt --key-file ~/.lifelong-key
      lifelong-edit init --model path/to/model --modules 3-5 --set passes=3 --set rehearse=100
    """
    opening = f"making {store} for {options['model'] or BUNDLED}"
    with make_store(store, device, options, opening, author) as timeline:
        found = timeline.status()
    if as_json:
        print_json(found)
    else:
        print_status(found)
