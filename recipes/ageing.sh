#!/usr/bin/env bash
# Ageing: of a long stream, what is left of its oldest batch under every rule (the column `oldest`).
#   RULES  those compared; all that need no trained network      BATCH  facts per batch; 16
. "$(dirname "$0")/common.sh"

every="gradient ultraedit stableedit search neurons rome r-rome memit memit-seq emmet alphaedit nse"
every+=" ft ft-replay locft li grace coachhook wise retrieval"
arms=()
for rule in ${RULES:-$every}; do arms+=(--arm "${rule//+/-around-}: editor=$rule"); done
compared --batch-size "${BATCH:-16}" "${arms[@]}"
