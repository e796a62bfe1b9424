"""`facts --check`: what files hold, before any store is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import counted, one_line, print_json, print_table
from lifelong_edit.errors import BadInputError, UsageError

if TYPE_CHECKING:
    from lifelong_edit.facts import Fact, Reader, ReadReport

SHOWN = 3
"""Facts that are shown."""
WANTED = ("subject", "relation", "rephrases", "locality", "portability", "target_true", "date", "source")
"""What a fact may have that does it good."""
_SHOWN_BAD = 5


@dataclass
class _Checked:
    """A source, what was read of it, and what its facts lack."""

    name: str
    report: ReadReport
    facts: list[Fact] = field(default_factory=list)
    """The first of them."""
    without: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WANTED, 0))


def check_files(files: Sequence[str], reader: Reader, *, as_json: bool) -> None:
    """Print what files hold. Raises UsageError without files, BadInputError, after all was told, for bad records."""
    from lifelong_edit.facts.sources import expand

    if not files:
        raise UsageError("found --check without files, expected some; name them behind it")
    found = [_check(name, reader) for name in expand(files)]
    if as_json:
        print_json([_described(one) for one in found])
    else:
        _print(found)
    if bad := sum(one.report.bad for one in found):
        raise BadInputError(
            f"found {counted(bad, 'bad record')}, expected none; correct them, or leave them out by `stream --skip-bad`"
        )


def _check(name: str, reader: Reader) -> _Checked:
    from lifelong_edit.facts import ReadReport, read_facts

    checked = _Checked(name, ReadReport())
    for record in read_facts([name], skip_bad=True, report=checked.report, reader=reader):
        if len(checked.facts) < SHOWN:
            checked.facts.append(record.fact)
        for wanted in WANTED:
            checked.without[wanted] += not getattr(record.fact, wanted)
    return checked


def _described(checked: _Checked) -> dict[str, Any]:
    import msgspec

    report = checked.report
    return {
        "file": checked.name,
        "shapes": dict(report.shapes),
        "facts": report.read,
        "left_out": {skip.value: count for skip, count in report.skips.items()},
        "bad": report.bad,
        "bad_records": report.skipped_bad,
        "unused": dict(report.unused),
        "without": {name: count for name, count in checked.without.items() if count},
        "first": [msgspec.to_builtins(fact) for fact in checked.facts],
    }


def _print(found: Sequence[_Checked]) -> None:
    from lifelong_edit.facts import describe_unused

    rows = [
        (one.name, ", ".join(f"{name} ({n})" for name, n in one.report.shapes.items()) or None, one.report.read,
         sum(one.report.skips.values()), one.report.bad)
        for one in found
    ]  # fmt: skip
    print_table(("file", "shapes (records)", "facts", "left out", "bad"), rows)
    for one in found:
        if one.facts:
            click.echo(f"\nthe first of {one.name}")
            told = [
                (f.subject, f.prompt, f.target, len(f.rephrases), len(f.locality), len(f.portability), f.date, f.source)
                for f in one.facts
            ]
            columns = ("subject", "prompt", "target", "rephrases", "locality", "portability", "date", "source")
            print_table(columns, told)
        lacking = ", ".join(
            f"{name} ({'all' if count == one.report.read else count})" for name, count in one.without.items() if count
        )
        if lacking:
            click.echo(f"facts without: {lacking}")
        for skip, count in one.report.skips.items():
            click.echo(f"{count} left out: {skip.value}")
        if one.report.unused:
            click.echo(one_line(describe_unused(one.report.unused)))
        for place in one.report.skipped_bad[:_SHOWN_BAD]:
            click.echo(f"bad: {one_line(place)}")
        if one.report.bad > _SHOWN_BAD:
            click.echo(f"bad: {one.report.bad - _SHOWN_BAD} more of {one.name}")
