"""Texts as vectors, by which a question and a fact are compared: the base model's own, or a sentence transformer's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lifelong_edit.editors.locate.sites import Site, block_of
from lifelong_edit.errors import ModelMismatchError, UsageError
from lifelong_edit.models import BASE, Encoded, LoadedModel, by_length, fingerprint_of
from lifelong_edit.models.families import layers_at
from lifelong_edit.models.quiet import quiet_transformers
from lifelong_edit.tasks import task_of

SENTENCE_TOKENS = 256
"""A sentence transformer reads so many tokens of a text at the most."""


class Encoder(Protocol):
    """What makes vectors of texts."""

    fingerprint: str
    """The digest of its weights; empty for the base model's own, which has its own."""

    def states(self, texts: Sequence[str]) -> Tensor:
        """(n, d) float32, on the CPU; the same for a text whatever stands beside it, up to rounding."""

    def tokens(self, texts: Sequence[str]) -> list[Tensor]:
        """Of each text the states of its tokens, (t, d) float32 on the CPU, of which `states` are the means."""


Read = tuple[list[int], Tensor, Tensor]
"""Which texts a pass read, their states (b, t, d) float32, and (b, t) long, 1 at the tokens that count."""


def means_of(reads: Iterator[Read], count: int) -> Tensor:
    """The mean over the tokens of each of so many texts, (n, d)."""
    found: dict[int, Tensor] = {}
    for chosen, states, mask in reads:
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        found.update(zip(chosen, mean.cpu(), strict=True))
    return torch.stack([found[i] for i in range(count)])


def tokens_of(reads: Iterator[Read], count: int) -> list[Tensor]:
    """The states of the tokens of each of so many texts, (t, d)."""
    found: dict[int, Tensor] = {}
    for chosen, states, mask in reads:
        found.update({i: own[there].cpu() for i, own, there in zip(chosen, states, mask.bool(), strict=True)})
    return [found[i] for i in range(count)]


class _Reached(Exception):
    """The block was reached: the layers above are not needed."""


def block_at(loaded: LoadedModel, depth: float) -> str:
    """The block at a share of a model's depth, whichever modules are edited.

    Raises UsageError where these stand in no numbered layer.
    """
    stem = block_of(loaded.modules[-1]).rpartition(".")[0]
    return f"{stem}.{layers_at(len(loaded.model.get_submodule(stem)), [depth])[0]}"


class OwnStates:
    """The hidden state behind a block at the base weights, in the mean over the tokens of a text.

    Unless a block is named it is the highest one that is edited.

    The first token is left out where there are others: in many models its state is unlike all others, whatever it is.
    """

    fingerprint = ""

    def __init__(self, loaded: LoadedModel, micro_batch: int, block: str | None = None) -> None:
        self._loaded, self._micro_batch = loaded, micro_batch
        self._site = Site(block or block_of(loaded.modules[-1]))

    def states(self, texts: Sequence[str]) -> Tensor:
        """See `Encoder`. Raises BadInputError for a text that the model cannot take."""
        return means_of(self._reads(texts), len(texts))

    def tokens(self, texts: Sequence[str]) -> list[Tensor]:
        """See `Encoder`. Raises BadInputError as `states`."""
        return tokens_of(self._reads(texts), len(texts))

    def _reads(self, texts: Sequence[str]) -> Iterator[Read]:
        loaded, task = self._loaded, task_of(self._loaded)
        with loaded.at(BASE), torch.no_grad():
            encoded = [Encoded.of(task.encode_question(loaded, text)) for text in texts]
            for chosen in by_length([len(e.ids) for e in encoded], self._micro_batch):
                batch = task.collate(loaded, [encoded[i] for i in chosen])
                states = self._read(batch.ids, batch.mask).to(batch.mask.device)
                mask = batch.mask.clone()
                mask[:, 0] = (batch.lengths == 1).to(mask)
                yield chosen, states.reshape(*mask.shape, -1).float(), mask

    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def see(states: Tensor) -> None:
            seen.append(states)
            raise _Reached

        with self._site.watched(self._loaded.model, see), suppress(_Reached):
            task_of(self._loaded).read(self._loaded, ids, mask)
        return seen[0]


class SentenceTransformer:
    """A BERT whose sentence is the mean over its tokens, as the sentence transformers with mean pooling are."""

    def __init__(self, folder: str, micro_batch: int) -> None:
        """Raises UsageError where the folder holds none that can be loaded."""
        from transformers import AutoModel, AutoTokenizer

        path = require_folder(folder)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            with quiet_transformers():
                self._model: Any = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True).eval()
        except Exception as error:  # transformers raises anything
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(f"setting encoder is {folder!r}, which cannot be loaded: {first}") from error
        self._micro_batch, self.fingerprint = micro_batch, fingerprint_of(self._model)

    def states(self, texts: Sequence[str]) -> Tensor:
        """See `Encoder`; the end of a text of more than SENTENCE_TOKENS is not read."""
        return means_of(self._reads(texts), len(texts))

    def tokens(self, texts: Sequence[str]) -> list[Tensor]:
        """See `Encoder`, and `states`."""
        return tokens_of(self._reads(texts), len(texts))

    def _reads(self, texts: Sequence[str]) -> Iterator[Read]:
        for chosen in by_length([len(text) for text in texts], self._micro_batch):
            inputs = self._tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=SENTENCE_TOKENS,
                return_tensors="pt",
            )
            with torch.no_grad():
                states = self._model(**inputs).last_hidden_state.float()
            yield chosen, states, inputs["attention_mask"]


def require_folder(folder: str) -> Path:
    """The place of an encoder. Raises UsageError for one that is no folder by its whole path."""
    path = Path(folder).expanduser()
    if not path.is_absolute() or not path.is_dir():
        raise UsageError(
            f"setting encoder is {folder!r}; it must be the folder of a sentence transformer, by its whole path, since "
            "the store is opened from anywhere"
        )
    return path


def encoder_of(
    loaded: LoadedModel, folder: str | None, micro_batch: int, expected: str | None = None, block: str | None = None
) -> Encoder:
    """The encoder of a store. expected: the fingerprint that it had at `init`. block: as of `OwnStates`.

    Raises UsageError as `SentenceTransformer`, ModelMismatchError, stating both fingerprints, where it is another one.
    """
    if folder is None:
        return OwnStates(loaded, micro_batch, block)
    found = SentenceTransformer(folder, micro_batch)
    if expected is not None and found.fingerprint != expected:
        raise ModelMismatchError(
            f"the encoder in {folder!r} has fingerprint {found.fingerprint}, expected {expected}: put back the one "
            "that the store was made with"
        )
    return found
