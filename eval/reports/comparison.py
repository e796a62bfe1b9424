"""What a stream left behind in several stores, side by side: one row per arm, mean and range over its seeds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import LifelongEditError, UsageError, near
from lifelong_edit.eval.reports.matrix import perplexity_after
from lifelong_edit.stores import Measurement
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.defaults import BUNDLED_MODEL, editor_of

FIGURES = ("efficacy", "oldest", "generality", "locality", "guard", "perplexity", "seconds")
"""Shares of right answers over all live facts, by generation; `oldest`: efficacy of the oldest batch that is in force.
perplexity: relative to the base model's on the store's sample; seconds: of the steps, by the wall clock."""
NOT_SETTINGS = ("hypernetwork", "settings", "reconsolidate", "batch_size")
"""Keys of an arm that are options of `stream` themselves; `settings` is what `train --choose` wrote."""


@dataclass(frozen=True)
class Arm:
    """One way of editing the stream: options of `stream` by name, all others settings."""

    name: str
    options: Mapping[str, str]

    def arguments(self, seed: int, batch_size: int, common: Sequence[str] = ()) -> list[str]:
        """The options of `stream` that make and fill its store. common: NAME=VALUE of settings that all arms share."""
        given = {"batch_size": str(batch_size), **self.options}
        found = ["--seed", str(seed), "--batch-size", given.pop("batch_size")]
        for name in ("hypernetwork", "settings", "reconsolidate", "editor", "modules"):
            if name in given:
                found += [f"--{name}", given.pop(name)]
        shared = [pair for pair in common if pair.partition("=")[0] not in self.options]
        for pair in (*shared, *(f"{name}={value}" for name, value in given.items())):
            found += ["--set", pair]
        return found


def parse_arm(text: str, editor: str | None = None, model: str = BUNDLED_MODEL) -> Arm:
    """An arm from `NAME: key=value key=value`, or from a name alone. Raises UsageError where it is none.

    Keys are settings and NOT_SETTINGS; values with spaces stand in quotes.
    editor, model: those of all arms; which settings there are is a matter of the arm's rule.
    """
    name, _, rest = text.partition(":")
    name, options = name.strip(), dict[str, str]()
    if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UsageError(f"found --arm {text!r}, expected NAME: KEY=VALUE ...; a name has letters, digits, - _ and .")
    try:
        parts = shlex.split(rest)
    except ValueError as error:
        raise UsageError(f"found --arm {text!r}, expected NAME: KEY=VALUE ...; {error}") from None
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key or key in options:
            raise UsageError(f"found {part!r} in --arm {text!r}, expected each key once, as KEY=VALUE")
        options[key] = value
    try:
        rule = _rule_of(options, editor, model)
    except LifelongEditError as error:
        raise type(error)(f"arm {name}: {error}") from error
    known = (*NOT_SETTINGS, *rule.settings.__struct_fields__)
    if unknown := [key for key in options if key not in known]:
        raise UsageError(
            f"found {unknown[0]!r} in --arm {text!r}, expected {', '.join(NOT_SETTINGS)} or a setting of {rule.name}"
            f"{near(unknown[0], known)}"
        )
    if "seed" in options:
        raise UsageError(f"found a seed in --arm {text!r}; name seeds with --seeds, they are the same for all arms")
    return Arm(name, options)


def _rule_of(options: Mapping[str, str], editor: str | None, model: str) -> Rule:
    """The editing rule of an arm, found as `init` finds that of a store."""
    network, chosen = (Path(options[key]) if key in options else None for key in ("hypernetwork", "settings"))
    modules = [options["modules"]] if "modules" in options else []
    named = options.get("editor") or editor
    return rule_of(editor_of(named, model, hypernetwork=network, settings=chosen, modules=modules))


def figures(timeline: Timeline, measurement: Measurement) -> dict[str, float | None]:
    """FIGURES of a store, by a measurement of all its live facts at the head."""
    line = timeline.history().line(timeline.head)
    first = min(measurement.live, default=0)
    oldest = [o.generated for o in measurement.outcomes if o.measure == "efficacy" and o.taught == first]
    found: dict[str, float | None] = {
        name: measurement.share(name) for name in ("efficacy", "generality", "locality", "guard")
    }
    found["oldest"] = sum(oldest) / len(oldest) if oldest else None
    base = line[0].provenance.get("perplexity")
    now = next((value for record in reversed(line) if (value := perplexity_after(record)) is not None), None)
    found["perplexity"] = now / base if now is not None and base else None
    found["seconds"] = sum(record.seconds or 0.0 for record in line)
    return {name: found[name] for name in FIGURES}


def over_seeds(runs: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float] | None]:
    """Mean, least and greatest of each figure; None where a run has none."""
    found: dict[str, dict[str, float] | None] = {}
    for name in FIGURES:
        values = [value for run in runs if (value := run[name]) is not None]
        whole = len(values) == len(runs) > 0
        found[name] = {"mean": sum(values) / len(values), "min": min(values), "max": max(values)} if whole else None
    return found


def store_of(folder: Path, arm: Arm, seed: int) -> Path:
    """Where the store of an arm and a seed lies."""
    return folder / f"{arm.name}-{seed}"


def described(arm: Arm) -> dict[str, Any]:
    """The arm as plain values."""
    return {"arm": arm.name, "options": dict(arm.options)}
