"""Settings: their ranges hold however they are made, and what their digest is taken over never changes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from lifelong_edit import Settings
from lifelong_edit.editors.locate.settings import LocateSettings
from lifelong_edit.editors.registry import RULES, rule_of
from lifelong_edit.errors import UsageError
from lifelong_edit.settings import StoreSettings, settings_of

# As stores have had it from the first on. A change of one byte would change the digest of every store's settings.
DEFAULTS = (
    '{"modules":[],"device":"cpu","dtype":"float32","micro_batch":64,"seed":0,"editor":"gradient","ask":"joint",'
    '"passes":3,"more_passes":4,"taken_enough":0.9,"eta":null,"kappa":2.0,"trust":1.5,"c0":1000.0,"subject_c0":4000.0,'
    '"log_ridge":null,"phrasings":3,"rehearse":50,"preserved":150,"preserved_keys":2.0,"preserved_weight":1.5,'
    '"preserved_step":0.1,"preserved_tokens":3,"reconsolidation_passes":24,"reconsolidation_gain":0.0002,'
    '"reconsolidation_eta":1.8,"reconsolidation_phrasings":1,"reconsolidation_decay":0.01,'
    '"reconsolidation_preserved":300,"reconsolidation_keys":0.5,"text_tokens":60000,"gram_rank":null,'
    '"snapshot_every":10,"gate_perplexity":1.5,"gate_min_taken":0.0,"conflict_probability":null,"conflict_cosine":-1.0,'
    '"conflict_policy":"supersede","trusted_sources":[]}'
)

LATER = ("form", "system", "derived", "gate_noise", "shift_dtype", "solve_device", "key_dtype")

WRONG: list[tuple[str, object]] = [
    *((name, bad) for name in ("micro_batch", "passes", "snapshot_every", "text_tokens") for bad in (0, -1)),
    *((name, bad) for name in ("preserved_tokens", "reconsolidation_passes") for bad in (0, -1)),
    *((name, bad) for name in ("kappa", "trust", "reconsolidation_eta", "eta") for bad in (0.0, -0.5)),
    ("conflict_probability", 0.0),
    *((name, -1) for name in ("more_passes", "phrasings", "rehearse", "preserved", "gram_rank")),
    *((name, -1) for name in ("reconsolidation_phrasings", "reconsolidation_preserved")),
    *((name, -0.1) for name in ("c0", "subject_c0", "taken_enough", "preserved_keys", "preserved_weight")),
    *((name, -0.1) for name in ("preserved_step", "reconsolidation_keys", "gate_min_taken")),
    *((name, bad) for name in ("reconsolidation_gain", "reconsolidation_decay") for bad in (-0.1, 1.0)),
    ("ask", "x"),
    ("form", "both ways"),
    ("conflict_policy", "shrug"),
    ("editor", "rmoe"),
    ("passes", "three"),
    ("passes", 1.5),
    ("c0", "much"),
    ("device", 1),
    ("trusted_sources", ["a", 2]),
]
AT_THE_EDGE: dict[str, object] = {
    "micro_batch": 1,
    "passes": 1,
    "more_passes": 0,
    "taken_enough": 0.0,
    "eta": 1e-300,
    "c0": 0.0,
    "gram_rank": 0,
    "phrasings": 0,
    "reconsolidation_gain": 0.0,
    "reconsolidation_decay": 0.999,
    "conflict_probability": 1,
    "log_ridge": -3,
    "kappa": 2,
}

Make = Callable[..., Settings]


def converted(**changes: Any) -> Settings:
    """As from JSON that somebody wrote."""
    return msgspec.convert(changes, Settings)


WAYS: dict[str, Make] = {
    "made": lambda **changes: Settings(**changes),
    "replaced": lambda **changes: Settings().replace(**changes),
    "converted": converted,
    "decoded": lambda **changes: msgspec.json.decode(msgspec.json.encode(changes), type=Settings),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "value"), WRONG)
def test_ranges_hold_however_settings_are_made(way: str, name: str, value: object) -> None:
    """Told in a sentence with the setting's name, or by msgspec, for whom its path is the name."""
    with pytest.raises((UsageError, msgspec.ValidationError), match=name) as caught:
        WAYS[way](**{name: value})
    if way in ("made", "replaced"):
        assert isinstance(caught.value, UsageError)
        assert "it must be" in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_what_lies_just_within_is_taken(way: str) -> None:
    found = WAYS[way](**AT_THE_EDGE)
    assert {name: getattr(found, name) for name in AT_THE_EDGE} == AT_THE_EDGE


@pytest.mark.parametrize("way", ["made", "replaced", "converted"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["log_ridge", "gate_perplexity", "conflict_cosine", "c0", "eta"])
def test_numbers_that_json_cannot_hold_are_refused_however_settings_are_made(way: str, name: str, value: float) -> None:
    with pytest.raises((UsageError, msgspec.ValidationError), match=name):
        WAYS[way](**{name: value})


@pytest.mark.parametrize("way", WAYS)
def test_a_setting_that_there_is_not_is_refused(way: str) -> None:
    with pytest.raises((TypeError, msgspec.ValidationError), match="momentum"):
        WAYS[way](momentum=1)


def test_the_defaults_are_encoded_as_they_always_were() -> None:
    assert Settings().encoded().decode() == DEFAULTS
    assert msgspec.json.decode(DEFAULTS, type=Settings) == Settings()


def test_every_setting_is_encoded_where_it_always_stood() -> None:
    """Those of all rules alike, whatever the order in which the classes name them."""
    names = list(json.loads(DEFAULTS))
    assert list(Settings.order) == [*names, *LATER]
    assert set(Settings.__struct_fields__) == {*names, *LATER}
    assert set(StoreSettings.__struct_fields__) < {*names, *LATER}
    assert {name for name in RULES if rule_of(name).settings is Settings} == {"malmen", "gradient"}
    changed = Settings(modules=("2-3", "0@subject"), eta=0.5, editor="ultraedit", trusted_sources=("a", "*"), seed=7)
    found = json.loads(changed.encoded())
    assert list(found) == names
    assert found == json.loads(DEFAULTS) | {
        "modules": ["2-3", "0@subject"],
        "eta": 0.5,
        "editor": "ultraedit",
        "trusted_sources": ["a", "*"],
        "seed": 7,
    }
    assert msgspec.json.decode(changed.encoded(), type=Settings) == changed


def test_what_came_later_is_encoded_only_where_it_changes_something() -> None:
    assert Settings(form="plain").encoded().decode() == DEFAULTS
    assert Settings(device="somewhere/map.json").encoded().decode() == DEFAULTS  # a file of one machine
    assert b'"device":"cuda:1"' in Settings(device="cuda:1").encoded()
    assert b'"solve_device":"cpu"' in Settings(solve_device="cpu").encoded()
    found = json.loads(Settings(form="both", system="Be kind.").encoded())
    assert found == json.loads(DEFAULTS) | {"form": "both", "system": "Be kind."}
    last = len(LATER)
    assert Settings.order[-last:] == LATER == tuple(Settings().told())[-last:]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kappa": "-1"}, "setting kappa is -1; it must be a number greater than zero"),
        ({"passes": "1.5"}, "setting passes is 1.5; it must be a whole number at least one"),
        ({"conflict_policy": "newest"}, "setting conflict_policy is 'newest'; it must be 'supersede' or"),
        ({"gram_rank": "none", "text_tokens": "many"}, "setting text_tokens is 'many'; it must be a whole number"),
    ],
)
def test_values_from_a_command_line_are_refused_in_a_sentence(given: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings_of(Settings, {name: None if value == "none" else value for name, value in given.items()})
    assert str(caught.value).startswith(said)
    with pytest.raises(UsageError, match="free is 2; it must be a number greater than zero and at most one"):
        settings_of(LocateSettings, {"free": "2"})
    assert settings_of(Settings, {"kappa": "3", "gram_rank": None, "modules": ["2"]}) == Settings(
        kappa=3.0, gram_rank=None, modules=("2",)
    )
