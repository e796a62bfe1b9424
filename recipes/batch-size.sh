#!/usr/bin/env bash
# Batch size: the same facts one at a time, and ever more of them together (Yoon et al., arXiv 2405.00664).
#   RULE   the editing rule; memit-seq                           SIZES  facts per batch; "1 16 64 256 1024"
. "$(dirname "$0")/common.sh"

arms=()
for size in ${SIZES:-1 16 64 256 1024}; do arms+=(--arm "b$size: batch_size=$size"); done
compared --set "editor=${RULE:-memit-seq}" "${arms[@]}"
