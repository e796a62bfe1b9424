#!/usr/bin/env bash
# Train the hypernetwork that comes with atlas, on the edits that come with it: bash scripts/atlas-network.sh OUT [MINUTES]
# Cheaper solves than a store's (fewer preserved prompts and rehearsed facts) let it take more steps in the time.
set -euo pipefail
cd "$(dirname "$0")/.."
exec lifelong-edit train --model atlas --data lifelong_edit/atlas/edits_train.jsonl --out "$1" \
  --minutes "${2:-20}" --set preserved=150 --set rehearse=25 --train rank=192
