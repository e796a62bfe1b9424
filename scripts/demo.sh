#!/usr/bin/env bash
# What lifelong-edit does, in a minute: news into a model, the log, and back. Leaves nothing behind.
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

# The first of the news: its question and what the news says.
read_first() { python -c 'import json, sys; print(json.loads(open(sys.argv[1], encoding="utf-8").readline())[sys.argv[2]])' "$@"; }
files=(facts/*.jsonl)
question=$(read_first "${files[0]}" prompt)
news=$(read_first "${files[0]}" target)

say "A store for atlas, the bundled model: it measures what has to hold still, and commits step 0."
run init

say "What the model says now. (The news, still to come: $news.)"
run ask "$question" --max-tokens 5

say "All the news, batch by batch. Each batch is one durable step, checked before it is committed."
run stream "${files[@]}"

say "The log: what was taught, how much of it took, what it did to perplexity."
run log

say "The same question after the edits:"
run ask "$question" --max-tokens 5

say "Back to the base model. Going back is itself a step of the log; nothing is lost."
run rollback 0 --reason "end of the demo"

say "And the answer is what it was, from weights that are equal by digest:"
run ask "$question" --max-tokens 5
run log

say "Done. Begin with: .venv/bin/lifelong-edit --help"
