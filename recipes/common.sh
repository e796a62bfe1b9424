# What the recipes of `compare` take from the environment. Read by them, not run.
#   MODEL  the model: atlas (bundled), a folder or a hub id      COUNT  facts, from the first; all of them
#   OUT    a folder for stores and report                        SET    further settings, as "text_tokens=3000 dtype=bfloat16"
# The arguments of a recipe are files of facts; without any, the sample facts in facts/.
set -euo pipefail
model=${MODEL:-atlas}
out=${OUT:-out/$(basename "$0" .sh)}
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"

files=("$@")
[ ${#files[@]} -gt 0 ] || files=("$here"/facts/*.jsonl)
if [ -n "${COUNT:-}" ]; then
    cat "${files[@]}" | sed -n "1,${COUNT}p" > "$out/facts.jsonl"
    files=("$out/facts.jsonl")
fi

settings=()
for pair in ${SET:-}; do settings+=(--set "$pair"); done

# compared ARGUMENTS...: the stream of all facts in each arm, one table, and $out/report.html.
compared() {
    lifelong-edit compare "${files[@]}" --model "$model" "${settings[@]}" --out "$out" "$@"
}
