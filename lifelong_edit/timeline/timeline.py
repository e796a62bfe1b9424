"""The timeline: facts in, steps logged, every state within reach.

Only what needs the model imports torch: `log`, `status`, `facts`, `show` and `rollback` start in a fraction of a
second.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import StoreError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.facts.checks import require_words
from lifelong_edit.facts.stored import decode_fact
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import (
    EditLog,
    StepRecord,
    Weights,
    decode_tensors,
    digest_bytes,
    encode_tensors,
    require_place,
    zeros,
)
from lifelong_edit.timeline.branches import Branching
from lifelong_edit.timeline.commit import Draft, write_step
from lifelong_edit.timeline.config import Config, absolute, author_of
from lifelong_edit.timeline.defaults import scorer_of
from lifelong_edit.timeline.editing import Editing
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.locking import locked
from lifelong_edit.timeline.measured import Measured
from lifelong_edit.timeline.names import StepName
from lifelong_edit.timeline.review import purged_fact
from lifelong_edit.timeline.shared import make_log, open_log
from lifelong_edit.timeline.states import parts_at, weights_at
from lifelong_edit.timeline.status import status_of
from lifelong_edit.timeline.trial import Trial
from lifelong_edit.timeline.view import View
from lifelong_edit.world import ALONE, World

if TYPE_CHECKING:
    from lifelong_edit.bench import Bench, State
    from lifelong_edit.editors.contract import Editor
    from lifelong_edit.models import Overlay


class Timeline(Branching, Measured, Editing):
    """An open store with the state at its head. Use as a context manager, or `close` it.

    Several threads may use one: its methods, and those of the views that it gives, wait for each other. What spans
    several calls (asking the model that `bench` gives, or doing something only if the head is still where it was) holds
    the re-entrant `lock` meanwhile: `with timeline.lock:`.
    """

    def __init__(
        self,
        log: EditLog,
        *,
        device: str | None = None,
        model: str | None = None,
        author: str | None = None,
        world: World = ALONE,
    ) -> None:
        self.author, self.world = author_of(author), world
        self.lock = threading.RLock()
        self._log, self._device, self._given = log, device, model
        self._history = History(log.steps(), log.idle())
        self.config = Config.of(self._history.record(0))
        if model is not None and self.config.model.source in (model, absolute(model)):
            self._given = None  # as at `init`, with its revision
        self._bench: Bench | None = None
        self._editor: Editor | None = None
        self._loaded: Any = None
        self._solving: Any = None

    # -- making, opening, closing

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        model: str,
        settings: StoreSettings | None = None,
        hypernetwork: str | Path | None = None,
        scorer: str | Path | None = None,
        preserve: Iterable[Probe | Fact | Mapping[str, Any] | str] | None = None,
        text: Iterable[str] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        author: str | None = None,
        encrypt: bool = False,
        say: Callable[[str], None] | None = None,
        world: World = ALONE,
    ) -> Timeline:
        """A new store for a model, standing at step 0, the base.

        model: "atlas", a folder, a GGUF file or a hub id. settings: by default `malmen` in the solve that the
        hypernetwork was trained for, `gradient` without one. hypernetwork: folder that `train` wrote; its content is
        copied into the store. scorer: another folder, with a scorer of conflicts. preserve: prompts whose answers must
        stay, as probes, texts, facts or dicts. text: ordinary text, for statistics and the gate's perplexity. What is
        None is what `timeline_defaults` brings. author: of the steps made through this handle, see `open`. encrypt: at
        rest, with the key in the file that LIFELONG_KEY_FILE names.
        say: told in a few words what begins, at each phase that takes long, once all that is cheap has been checked.
        world: the processes that make it together, see `open`.
        Raises UsageError where `path` is taken, StoreError where no folder can be made, and whatever loading raises.
        """
        folder = Path(path)
        world.lead(lambda: require_place(folder, encrypt=encrypt))
        from lifelong_edit.timeline.beginning import started
        from lifelong_edit.timeline.model import begin

        source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        start = started(model, settings=settings, hypernetwork=hypernetwork, preserve=preserve, text=text, **source)
        found = scorer_of(scorer, start.hypernetwork)
        beginning = begin(model, scorer=found, say=say, world=world, **vars(start), **source)
        record = msgspec.structs.replace(beginning.record, author=author_of(author))
        log = make_log(world, folder, record, blobs=beginning.blobs, weights=beginning.weights, encrypt=encrypt)
        timeline = cls(log, author=author, world=world)
        timeline._loaded = beginning.loaded
        return timeline

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        read_only: bool = False,
        device: str | None = None,
        model: str | None = None,
        author: str | None = None,
        timeout: float = 5.0,
        world: World = ALONE,
    ) -> Timeline:
        """An existing store. The model is loaded when it is first needed, and refused if it is not the store's.

        device: where the model lives, by default as at `init`. model: load it from there instead of where `init` did.
        author: who makes the steps that are made through this handle; by default LIFELONG_AUTHOR, else the login name.
        timeout: seconds to wait for another writer. world: the processes that have opened it together, and call the
        same methods in the same order; number 0 of them writes. Raises StoreError and its kinds.
        """
        log = open_log(world, path, read_only=read_only, timeout=timeout)
        try:
            return cls(log, device=device, model=model, author=author, world=world)
        except BaseException:
            log.close()
            raise

    @locked
    def begin_again(self, path: str | Path) -> Timeline:
        """A new store with the same step 0 and nothing else: the model, and all that `init` fixed.

        As encrypted as this one. The model is loaded once for both. Raises UsageError where `path` is taken.
        """
        first = self.show(0)
        blobs = {digest: self._log.blob(digest) for digest in first.blobs}
        stored = encode_tensors(zeros(self.config.model.modules))
        blobs[digest_bytes(stored)] = stored
        sealed = self._log.envelopes.encryption is not None
        log = EditLog.create(path, first, blobs=blobs, weights=digest_bytes(stored), encrypt=sealed)
        again = Timeline(log, device=self._device, model=self.source, author=self.author)
        again._loaded = self.bench().loaded
        return again

    @locked
    def close(self) -> None:
        """Keep the key index and let go of the store; closing twice is harmless."""
        solving, self._solving = self._solving, None
        try:
            if solving is not None and self.world.leads:
                with contextlib.suppress(StoreError, OSError):  # it is a cache: without it the next run is slower
                    solving.save_index()
        finally:
            self._log.close()

    def __enter__(self) -> Timeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- looking

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._log.path

    @property
    def settings(self) -> StoreSettings:
        """The options fixed at `init`."""
        return self.config.settings

    @property
    @locked
    def source(self) -> str:
        """Where the model is loaded from: as `open` was told, else as `relocate` was, else where `init` found it."""
        return self._given or self._log.place() or self.config.model.source

    @property
    @locked
    def head(self) -> int:
        """The last step of the log."""
        return self.history().head

    @property
    @locked
    def chain(self) -> str:
        """The chain digest of the last step, which covers the whole log."""
        return self._log.head().chain

    @locked
    def history(self) -> History:
        """The log as read so far, brought up to date first: another process may have added steps."""
        if self._log.head().step > self._history.head:
            for record in self._log.steps(self._history.head + 1):
                self._history.take(record)
        return self._history

    @locked
    def log(self) -> list[StepRecord]:
        """All steps, oldest first."""
        return list(self.history().records)

    @locked
    def show(self, step: StepName) -> StepRecord:
        """One step, by number, tag, branch or `head`. Raises UsageError where there is none."""
        return self.history().record(step)

    @locked
    def bytes_of(self, step: StepName) -> int:
        """What a step added to the store, in bytes: its facts, and the blobs that no earlier step had."""
        record = self.show(step)
        known = {blob for earlier in self.history().records[: record.step] for blob in earlier.blobs}
        blobs = {blob for blob in record.blobs if blob not in known}
        kept = [digest for digest in record.added if digest not in self.history().purged]
        return sum(map(self._log.blob_size, blobs)) + sum(map(len, self._log.facts(kept).values()))

    @locked
    def facts_by_digest(self, digests: Sequence[str]) -> dict[str, Fact]:
        """Facts of the store by digest, whatever became of them; `purged_fact` in the place of what was purged."""
        purged = self.history().purged
        encoded = self._log.facts([digest for digest in digests if digest not in purged])
        found = {digest: decode_fact(data, digest) for digest, data in encoded.items()}
        return {digest: found.get(digest) or purged_fact(digest) for digest in digests}

    @locked
    def status(self) -> dict[str, Any]:
        """Where the timeline stands, as plain values."""
        return status_of(self._log, self.history(), self.config) | {"model": self.source}

    @locked
    def staleness(self) -> dict[str, Any]:
        """How far the stored keys have drifted from those of the model at the head, measured now; loads the model.

        `state`, the step whose state was measured, and figures by module and age as of `judging.staleness`.
        """
        found: dict[str, Any] = self._solve().staleness()
        return found

    @locked
    def weights(self, step: StepName) -> Weights:
        """ΔW by module at the state of a step, checked against the digest logged with it. No torch."""
        return weights_at(self._log, self.history(), step, self.config.model.modules)

    @locked
    def at(self, step: StepName) -> View:
        """The state at a step, to look at. Raises UsageError where there is no such step."""
        return View(self, self.show(step).step, str(self.path))

    @locked
    def model(self) -> Any:
        """A fresh transformers model with the weights of the head."""
        return self.at(self.head).model()

    # -- changing

    @locked
    def bench(self) -> Bench:
        """The model with all that `init` fixed, loaded when first asked for.

        Raises ModelMismatchError, stating both fingerprints, where it is not the model of `init`.
        """
        if self._bench is None:
            from lifelong_edit.timeline.model import make_bench

            place = self._given or self._log.place()
            self._bench = make_bench(self.config, self.fixed(), self._device, place, self._loaded, self.world)
        return self._bench

    @locked
    def relocate(self, model: str | Path) -> str:
        """Say for good where the store's model lies now; what is returned. It is loaded, and has to be that of `init`.

        Kept in a file beside the log, not in it: a backup has none. Raises what loading raises, ModelMismatchError
        where it is another model, StoreError where the store is open read-only or cannot be written.
        """
        from lifelong_edit.timeline.model import make_bench

        self._refuse_read_only()
        place = absolute(str(model))
        bench = make_bench(self.config, self.fixed(), self._device, place, None, self.world)
        self._log.put_place(None if place == self.config.model.source else place)
        self._given, self._bench, self._editor, self._solving = None, bench, None, None
        return place

    @locked
    def editor(self) -> Editor:
        """The store's rule at work on its bench. Raises as `bench`."""
        if self._editor is None:
            from lifelong_edit.timeline.model import make_editor

            self._editor = make_editor(self.bench())
        return self._editor

    @locked
    def overlay(self, step: StepName) -> Overlay:
        """How the state at a step shows in the model."""
        return self.editor().overlay(self.state(step))

    @locked
    def state(self, step: StepName) -> State:
        """As much of the state at a step as an editor's overlay needs.

        Shifts, further parts, and the facts where those are what is remembered. Imports torch, loads no model.
        """
        from lifelong_edit.bench import State
        from lifelong_edit.timeline.model import as_tensors

        rule = rule_of(self.settings.editor)
        further = parts_at(self._log, self.history(), step) if rule.further_parts else {}
        live = {fact.digest: fact for fact in self.live_facts(step)} if rule.by_facts else {}
        return State(shifts=as_tensors(self.weights(step)), live=live, parts=further)

    @locked
    def live_facts(self, step: StepName) -> list[Fact]:
        """The facts live at the state of a step, in the order in which they came."""
        return self.facts("live", at=step)

    @locked
    def fixed(self) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays fixed at `init`, by name."""
        return decode_tensors(self._log.blob(str(self.show(0).fixed)), "what init fixed")

    @locked
    def consumed_in(self, file_digest: str) -> Collection[int]:
        """The numbers of the records consumed of a file with that digest: for `read_facts(..., known=...)`."""
        return self.history().consumed_in(file_digest)

    @locked
    def trial(self) -> Trial:
        """A dry run from the head on, over as many batches as are given to it; nothing is committed."""
        return Trial(self, self._log)

    def _commit(self, draft: Draft) -> StepRecord:
        draft.fill(author=self.author)
        try:
            record = write_step(self._log, self.history(), self.config, draft)
        except BaseException:
            self._solving = None  # committed or not: read it from the log when it is needed
            raise
        draft.weights = draft.change = None  # what follows reads them from the log: of a large model they are gigabytes
        if self._solving is not None:
            self._solving.moved(record)
        self.history()
        return record

    def _solve(self) -> Any:
        """The head's state ready for a solve."""
        from lifelong_edit.timeline.solving import Solving

        if self._solving is None:
            self._solving = Solving(self._log, self.history, self.config, self.bench(), self.editor())
        return self._solving

    def _refuse_read_only(self, reason: str | None = None) -> None:
        require_words("the reason", reason)
        if self._log.read_only:
            raise StoreError(f"{self.path} is open read-only; open it for writing")
