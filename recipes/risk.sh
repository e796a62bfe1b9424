#!/usr/bin/env bash
# Edit at your own risk: what a share of an edit teaches, and what it leaves alone (1-LI, Brown et al., arXiv 2303.00046).
#   RULE   the editing rule; ft                                  SHARES of what it changes; "0.2 0.4 0.6 0.8 1.0"
#   BATCH  facts per batch; 64
. "$(dirname "$0")/common.sh"

arms=()
for share in ${SHARES:-0.2 0.4 0.6 0.8 1.0}; do
    arms+=(--arm "a$share: editor=li+${RULE:-ft} alpha=$share")
done
compared --batch-size "${BATCH:-64}" "${arms[@]}"
