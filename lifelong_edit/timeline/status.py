"""Where a timeline stands, as plain values. No torch."""

from __future__ import annotations

from typing import Any

from lifelong_edit.stores import EditLog
from lifelong_edit.timeline.config import Config
from lifelong_edit.timeline.history import History


def status_of(log: EditLog, history: History, config: Config) -> dict[str, Any]:
    """What `Timeline.status` gives."""
    record, fold, begun = history.record(history.head), history.fold(history.head), history.record(0).provenance
    return {
        "store": str(log.path),
        "encrypted": log.envelopes.encryption is not None,
        "head": history.head,
        "state": history.state_of(history.head),
        "branch": history.names.current,
        "steps": len(history.records),
        "live_facts": len(fold.live),
        "superseded": len(fold.ever) - len(fold.live) - len(fold.retracted),
        "retracted": len(fold.retracted),
        "quarantined": len(fold.quarantined),
        **history.forecast(history.head),
        "weights_digest": record.weights_digest,
        "live_digest": record.live_digest,
        "base_fingerprint": config.model.fingerprint,
        "model": config.model.source,
        "dtype": config.model.dtype,
        "editor": config.settings.editor,
        "form": config.settings.form or "plain",
        "modules": list(config.model.entries),
        "preserved": begun.get("preserved"),
        "base_perplexity": begun.get("perplexity"),
        "time": record.time,
        "bytes": log.size(),
        "settings": config.settings.told(),
        "staleness": history.staleness(history.head),
    }
