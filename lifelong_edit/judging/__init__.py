"""What is thought of a change before and after it: gate, guard, staleness, forecast, retraction compared."""

from __future__ import annotations
