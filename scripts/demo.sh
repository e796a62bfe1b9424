#!/usr/bin/env bash
# What lifelong-edit does: news into a model, the log, and back. Leaves one page behind, a report.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export LIFELONG_STORE="$folder/store"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() {
    printf '$ lifelong-edit'
    local word
    for word; do
        if [[ $word == *' '* ]]; then printf ' "%s"' "$word"; else printf ' %s' "$word"; fi
    done
    printf '\n'
    lifelong-edit "$@"
}

question="The currency of Denmark is the"

say "A store for atlas, the bundled model: it measures what has to hold still, and commits step 0."
run init

say "What the model says now. (The invented news of 2031: in January the euro, in February the Norwegian krone.)"
run ask "$question" --max-tokens 5

say "All the news, batch by batch. Each batch is one durable step, checked before it is committed."
run stream facts/*.jsonl --batch-size 16

say "The log: what was taught, how much of it took, what it did to perplexity."
run log

say "The same question after the edits:"
run ask "$question" --max-tokens 5

say "Back to the state after the first step. Going back is itself a step of the log; nothing is lost."
run rollback 1 --reason "February was a mistake"

say "The question again. The weights are those of step 1, equal by digest:"
run ask "$question" --max-tokens 5
run log

say "How editing forgets: 45 facts in three batches, solved as MALMEN was published, one pass each and nothing held still.
(kept: of the earlier batches' facts that were asked, the share that is still answered)"
export LIFELONG_STORE="$folder/published"
head -n 45 lifelong_edit/atlas/edits_validation.jsonl >"$folder/facts.jsonl"
lifelong-edit stream "$folder/facts.jsonl" --batch-size 15 --editor gradient \
    --set ask=published --set eta=3 --set gate_perplexity=10 --set reconsolidation_preserved=100 --set reconsolidation_passes=12 | grep -v "^not taken"

say "The cure: solve again, from the base weights, for all facts in force and the preserved prompts together."
run reconsolidate

page="${DEMO_REPORT:-demo-report.html}"
say "What was asked along the way, on one page: open $page in a browser."
run report "$LIFELONG_STORE" -o "$page"

say "Done. Begin with: .venv/bin/lifelong-edit --help"
