#!/usr/bin/env bash
# Train the hypernetwork that comes with atlas, on the edits that come with it: bash scripts/atlas-network.sh OUT [STEPS]
# Two passes per batch: there a network is ahead of the rule without one, and a batch costs a third less.
set -euo pipefail
cd "$(dirname "$0")/.."
exec lifelong-edit train --model atlas --data lifelong_edit/atlas/edits_train.jsonl --out "$1" \
  --steps "${2:-180}" --minutes 60 --set passes=2 --train rank=192
