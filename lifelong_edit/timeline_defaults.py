"""What a new store takes from the package where its maker gives nothing: text, preserved prompts, hypernetwork."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from lifelong_edit import atlas
from lifelong_edit.facts import Probe, read_prompts
from lifelong_edit.forecast import Forecaster, Kind, read_forecasters

BUNDLED_MODEL = "atlas"


def default_text() -> list[str]:
    """The bundled English prose: what the gram of text keys and the sample of the gate are taken from."""
    path = atlas.text_path()
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def default_preserved(model: str) -> list[Probe]:
    """Prompts whose answers must stay, for the bundled model; for another one only its owner knows them."""
    path = atlas.preserved_prompts_path()
    return list(read_prompts([str(path)])) if model == BUNDLED_MODEL and path.is_file() else []


def solve_of(hypernetwork: Path | None) -> dict[str, Any]:
    """Modules and settings that a network was trained for: a store's defaults, for it is at home in no others."""
    if hypernetwork is None:
        return {}
    from lifelong_edit.hypernetwork import read_config  # imports torch
    from lifelong_edit.settings import SOLVE

    config = read_config(hypernetwork)
    return {name: config.settings[name] for name in SOLVE if name in config.settings} | {"modules": config.entries}


def default_hypernetwork(model: str) -> Path | None:
    """The folder of the network that was trained for a model and comes with the package, if there is one."""
    return atlas.hypernetwork_dir() if model == BUNDLED_MODEL else None


@functools.cache
def default_forecasters() -> dict[Kind, Forecaster]:
    """The forecasters that were fitted on the forgetting of the bundled model, by kind."""
    return read_forecasters(atlas.forecast_path())
