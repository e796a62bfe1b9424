"""`editors`: what editing rules there are, told from their declarations. Needs neither a store nor torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import json_option, print_json, print_table

if TYPE_CHECKING:
    from lifelong_edit.editors.contract import Rule
    from lifelong_edit.editors.wrapping import Wrapper


@click.command()
@click.option("--wrappers", is_flag=True, help="List the wrappers instead: what each does to a rule.")
@json_option
def editors(wrappers: bool, as_json: bool) -> None:
    """The editing rules that a store can have: what each needs, its tasks, what it exports and keeps, and where from.

    `needs` is what a rule cannot do without: a trained network, facts that name their subject, ordinary text. `keeps`
    is what it remembers beside weights and keys. `bytes` is what an edit adds to the store, one of a batch of 16 into
    the bundled model; `plan` says what many take of yours. `wrappers` are those that can stand around it, as in
    `--editor rect+memit`. `relearns`, in JSON, is how it solves again for all facts.

    \b
    Examples:
      lifelong-edit editors
      lifelong-edit editors --wrappers
      lifelong-edit editors --json | jq -r '.[] | select(.needs | index("network") | not).name'
    """
    from lifelong_edit.editors.registry import RULES, rule_of
    from lifelong_edit.editors.wrapping import WRAPPERS

    if wrappers:
        found = [describe_wrapper(wrapper) for wrapper in WRAPPERS.values()]
        columns: tuple[str, ...] = ("name", "title", "settings", "keeps", "reference")
    else:
        found = [describe(rule_of(name)) for name in RULES]
        columns = ("name", "needs", "tasks", "exports", "keeps", "bytes", "wrappers", "reference")
    if as_json:
        print_json(found)
        return
    print_table(columns, [[_joined(rule[name]) for name in columns] for rule in found])


def describe_wrapper(wrapper: Wrapper) -> dict[str, Any]:
    """A wrapper's declaration as plain values."""
    return {
        "name": wrapper.name,
        "title": wrapper.title,
        "settings": list(wrapper.adds),
        "keeps": sorted(wrapper.parts or {}),
        "relearns": wrapper.relearns,
        "reference": wrapper.reference,
    }


def describe(rule: Rule) -> dict[str, Any]:
    """A rule's declaration as plain values."""
    from lifelong_edit.editors.sizes import sizes
    from lifelong_edit.editors.wrapping import WRAPPERS, refusal

    return {
        "name": rule.name,
        "title": rule.title,
        "needs": sorted(rule.needs),
        "tasks": sorted(rule.tasks),
        "exports": sorted(rule.exports),
        "keeps": rule.further_parts,
        "bytes": sizes().bytes.get(rule.name),
        "wrappers": [name for name in WRAPPERS if not refusal(name, rule)],
        "trains": sorted(rule.trains),
        "edits": rule.places,
        "relearns": rule.relearns,
        "reference": rule.reference,
    }


def _joined(value: object) -> object:
    return (", ".join(value) or None) if isinstance(value, list) else value
