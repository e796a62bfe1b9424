"""The commands that take facts back, and prove it: retract, prove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.cli.common import (
    author_option,
    cell,
    counted,
    json_option,
    loading_options,
    opened,
    print_json,
    print_table,
    reason_option,
    say,
    store_option,
    wait_option,
)
from lifelong_edit.cli.keeping import ranges
from lifelong_edit.cli.looking import describe_step
from lifelong_edit.cli.measuring import measure_after
from lifelong_edit.cli.processes import world_at_hand
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import LifelongEditError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lifelong_edit.timeline import Timeline

_PAGE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("facts", nargs=-1, metavar="[FACT]...")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Also the facts in force whose record had this `id`.")
@click.option("--revive", is_flag=True, help="Bring back what they had superseded.")
@click.option(
    "--purge",
    is_flag=True,
    help="Then drop their text, and what every state that held something of them needs; see `purge`.",
)
@click.option("--prove", "page", type=_PAGE, metavar="PAGE", help="Then prove it, and write a page; see `prove`.")
@reason_option
@author_option
@loading_options
@wait_option
@store_option
@json_option
def retract(
    facts: tuple[str, ...],
    ids: tuple[str, ...],
    revive: bool,
    purge: bool,
    page: Path | None,
    reason: str | None,
    author: str | None,
    device: str | None,
    wait: float,
    store: Path,
    as_json: bool,
) -> None:
    """Take facts back, however old, as one committed step.

    FACT is a digest of a fact in force, or its beginning, four letters at least: `facts` and `show` list them. It may
    be one that was superseded: it does not come back then, whatever --revive brings back later.

    The facts that remain are solved for again, from the base weights: the model is, to the last bit, that of a store
    that only ever had them. As a step it can be rolled back. What the model then says of the retracted facts is told
    beside what it says of unedited ones of the same relations: how many are answered as by the base model.

    \b
    Examples:
      lifelong-edit facts --subject Denmark
      lifelong-edit retract 4be1f0a2 --reason "source withdrawn"
      lifelong-edit retract 4be1f0a2 91c3d7 --revive
      lifelong-edit retract --id news-2041 --reason "source withdrawn"
      lifelong-edit retract 4be1f0a2 --purge --reason "a person asked for it"
      lifelong-edit retract 4be1f0a2 --prove proof.md --reason "a person asked for it"
    """
    _require_any(facts, ids)
    if page is not None:
        require_writable(page)
        if world_at_hand().size > 1:
            raise UsageError("found --prove with several processes, expected one; use `prove` afterwards")
    with opened(store, read_only=False, device=device, author=author, wait=wait) as timeline:
        facts = (*facts, *_with_ids(timeline, ids, "live"))
        if purge:
            _require_purgeable(timeline, facts)
        step = timeline.retract(facts, revive=revive, reason=reason, say=say)
        known = timeline.facts_by_digest((*step.superseded, *step.added))
        if timeline.history().live(step.step):
            measure_after(timeline, step.step)
    gone = _purge(store, step.superseded, reason, author, wait) if purge else None
    proof = None if page is None else _proven(store, step.superseded, page, None, device)
    if as_json:
        told = {"retracted": step.superseded, "revived": step.added, "purged": gone, "report": step.report}
        print_json(describe_step(step) | told | ({} if proof is None else {"proof": proof}))
        _require_equal(proof)
        return
    rows = [("retracted" if digest in step.superseded else "revived", digest[:12], f) for digest, f in known.items()]
    print_table(("", "fact", "prompt", "target"), [(how, digest, f.prompt, f.target) for how, digest, f in rows])
    for name, found in step.as_base.items():
        if found.asked:
            say(f"{name}: {found.same} of {counted(found.asked, 'fact')} answered as by the base model")
    first = next(iter(known.values()))
    if gone is not None:
        say(f"step {gone['step']} dropped {counted(len(gone['facts']), 'fact')}, and {ranges(gone['out_of_reach'])}")
    say(f"step {step.step} is without {cell(first.prompt, 60)}" + (" and others" if len(step.superseded) > 1 else ""))
    if page is not None:
        say(f"the proof is in {page}")
    _require_equal(proof)


@click.command()
@click.argument("facts", nargs=-1, metavar="[FACT]...")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Also the retracted facts whose record had this `id`.")
@click.option("--out", "page", type=_PAGE, metavar="PAGE", help="Write the page there, and PAGE.json beside it.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the store that was made without the facts, for others to look at.",
)
@loading_options
@store_option
@json_option
def prove(
    facts: tuple[str, ...],
    ids: tuple[str, ...],
    page: Path | None,
    keep: Path | None,
    device: str | None,
    store: Path,
    as_json: bool,
) -> None:
    """Prove that facts which were retracted are out of the model, and write a page for an auditor.

    FACT is the digest of a retracted fact, or its beginning. A new store is made from the same beginning, which is
    taught all facts that were in force after the retraction and never sees the others. Then the digests of all that the
    two states consist of are compared: exit code 1 unless they are equal. The page says what was asked, what was done,
    what was compared, what that says and what it does not, and how anybody can check it. It names facts by their
    digests and has no text of theirs. The store is only read.

    \b
    Examples:
      lifelong-edit prove 4be1f0a2
      lifelong-edit prove --id news-2041 --out proof.md --keep made-without
    """
    _require_any(facts, ids)
    if page is not None:
        require_writable(page)
    found = _proven(store, facts, page, keep, device, ids)
    if as_json:
        print_json(found)
    else:
        from lifelong_edit.timeline.proving import as_text

        click.echo(as_text(found) if page is None else page)
    _require_equal(found)


def _require_any(facts: Sequence[str], ids: Sequence[str]) -> None:
    if not facts and not ids:
        raise UsageError("found no fact named, expected at least one FACT or --id; `facts` and `show` list them")


def _with_ids(timeline: Timeline, ids: Sequence[str], state: Literal["live", "retracted"]) -> list[str]:
    """The digests of such facts whose records had one of these. Raises UsageError for one that none had."""
    known = timeline.facts(state) if ids else []
    if unknown := [one for one in ids if all(fact.id != one for fact in known)]:
        what = "in force" if state == "live" else "retracted"
        raise UsageError(
            f"found --id {unknown[0]!r}, expected the `id` of a record whose fact is {what}; "
            f"`facts --state {state}` lists those"
        )
    return [fact.digest for fact in known if fact.id in ids]


def require_writable(page: Path) -> None:
    """Raise UsageError, before anything is solved for, where a page cannot be written."""
    if not page.parent.is_dir() or page.is_dir():
        raise UsageError(f"cannot write a page to {page}: expected a file in a folder that exists; name another")


def _proven(
    store: Path,
    facts: Sequence[str],
    page: Path | None,
    keep: Path | None,
    device: str | None,
    ids: Sequence[str] = (),
) -> dict[str, Any]:
    """The page of a proof, written where it is to be. ids: of records whose facts are meant as well."""
    from lifelong_edit.timeline.config import now
    from lifelong_edit.timeline.proving import as_text, page_of, prove

    with opened(store, read_only=True, device=device) as timeline:
        facts = [*facts, *_with_ids(timeline, ids, "retracted")]
        say(f"making the store without {counted(len(facts), 'fact')}")
        found = page_of(prove(timeline, facts, keep=keep, say=say), rule_of(timeline.settings.editor), now())
    if page is not None:
        try:
            write_bytes_atomic(page, as_text(found).encode())
            text = json.dumps(found, indent=2, ensure_ascii=False)
            write_bytes_atomic(page.with_name(f"{page.name}.json"), f"{text}\n".encode())
        except OSError as error:
            raise LifelongEditError(f"cannot write {page}: {error.strerror or error}") from error
    return found


def _require_equal(page: dict[str, Any] | None) -> None:
    """Raise LifelongEditError where a proof is none."""
    if page is not None and page["verdict"] != "equal":
        raise LifelongEditError(
            f"the store that was made without the facts is {page['verdict']}, expected it to be equal; see what the "
            "page says of the environment"
        )


def _require_purgeable(timeline: Timeline, names: Sequence[str]) -> None:
    """Before anything is solved for: no tag and no other branch may stand where something of the facts is held."""
    from lifelong_edit.timeline.purging import require_unheld

    history = timeline.history()
    digests = [history.retractable(timeline.head, name) for name in names]
    require_unheld(history, history.holding(digests), without_head=True)


def _purge(store: Path, facts: Sequence[str], reason: str | None, author: str | None, wait: float) -> dict[str, Any]:
    import msgspec

    from lifelong_edit.timeline.purging import purge

    found: dict[str, Any] = msgspec.to_builtins(purge(store, facts, reason=reason, author=author, timeout=wait))
    return found
