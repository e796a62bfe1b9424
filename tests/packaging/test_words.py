"""The repository speaks of the software: of no machine that it was made on, and of nobody who made it there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Put together from halves, so that this file does not match itself.
MACHINE_PATHS = [f"/{folder}/" for folder in ("wor" + "k", "hom" + "e", "roo" + "t", "op" + "t")]
HOSTS = ["pypi" + ".org", "pythonhosted" + ".org", "download.pytorch" + ".org", "registry.npm" + "js"]
WORDS = [
    "cla" + "ude",
    "anth" + "ropic",
    "chat" + "gpt",
    r"\bllm a" + "gent",
    r"\bcode" + r"x\b",
    r"\bissue" + "s show",
]
PLACES = re.compile("|".join(map(re.escape, MACHINE_PATHS + HOSTS)), re.IGNORECASE)
PATTERN = re.compile(f"{PLACES.pattern}|{'|'.join(WORDS)}", re.IGNORECASE)
DATA = {".jsonl", ".tsv", ".txt"}  # facts of the world may name anybody
BINARY = {".safetensors", ".png", ".npz", ".gz"}


def committed() -> Iterator[Path]:
    """Every file that is in the repository, or would be with the next commit."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    for name in done.stdout.split("\0"):
        path = REPOSITORY / name
        if name and path.is_file() and path.suffix not in BINARY:
            yield path


def findings(text: str, pattern: re.Pattern[str] = PATTERN) -> list[str]:
    return [
        f"line {number}: {line.strip()[:120]}"
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_machine_and_no_host_is_named() -> None:
    found = {}
    for path in committed():
        of_the_world = path.suffix in DATA or path.name == "tokenizer.json"  # where names are tokens
        pattern = PLACES if of_the_world else PATTERN
        if lines := findings(path.read_text(encoding="utf-8", errors="replace"), pattern):
            found[str(path.relative_to(REPOSITORY))] = lines
    assert not found


def test_the_words_can_be_found() -> None:
    assert findings("see " + MACHINE_PATHS[0] + "main") and findings("https://" + HOSTS[0].upper())
    assert not findings("network/home of facts; they work/rest in optimisation")
