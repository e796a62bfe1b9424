"""The bundled default: a small language model that knows some three thousand facts, and the data that goes with it.

Only paths are handed out here and nothing heavy is imported; the model is loaded by ``lifelong_edit.models``.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "check_edits_path",
    "check_model_dir",
    "check_preserved_path",
    "conflicts_path",
    "edits_train_path",
    "edits_validation_path",
    "forecast_path",
    "heldout_text_path",
    "hypernetwork_dir",
    "model_dir",
    "preserved_prompts_path",
    "t5_dir",
    "text_path",
]

_HERE = Path(__file__).parent


def model_dir() -> Path:
    """The folder with weights (float16), tokenizer and ``card.json``; transformers loads it as it is."""
    return _HERE / "model"


def t5_dir() -> Path:
    """The folder of ``atlas-t5``, an encoder-decoder that answers questions about the same facts."""
    return _HERE / "t5"


def check_model_dir() -> Path:
    """The folder of ``atlas-check``, an encoder that tells true claims about the world of atlas from false ones."""
    return _HERE / "check"


def check_edits_path() -> Path:
    """JSONL of claims that ``atlas-check`` tells right, each with the other label."""
    return _HERE / "check_edits.jsonl"


def check_preserved_path() -> Path:
    """JSONL of claims whose labels an edit must not change; none is edited or probed in another file."""
    return _HERE / "check_preserve.jsonl"


def hypernetwork_dir() -> Path | None:
    """The folder with the hypernetwork trained for this model, or None in a package built without one."""
    folder = _HERE / "hypernetwork"
    return folder if any(folder.glob("*.safetensors")) else None


def preserved_prompts_path() -> Path:
    """JSONL of prompts whose answers an edit must not change; none is edited or probed in another bundled file."""
    return _HERE / "preserve.jsonl"


def edits_train_path() -> Path:
    """JSONL of counterfactual edits of facts that atlas knows, for training a hypernetwork and choosing settings."""
    return _HERE / "edits_train.jsonl"


def edits_validation_path() -> Path:
    """JSONL of counterfactual edits of other subjects, for validation."""
    return _HERE / "edits_validation.jsonl"


def forecast_path() -> Path:
    """JSON of the forecasters fitted on what streams of ``edits_train_path`` made this model forget."""
    return _HERE / "forecast.json"


def conflicts_path() -> Path:
    """JSON of the scorer of conflicts fitted on paraphrases and other questions of ``edits_train_path``."""
    return _HERE / "conflicts.json"


def text_path() -> Path:
    """Prose that atlas was trained on, one paragraph a line: for the gram of text keys."""
    return _HERE / "text_train.txt"


def heldout_text_path() -> Path:
    """Prose that atlas never saw, one paragraph a line: for perplexity."""
    return _HERE / "text_heldout.txt"
