"""What leaves a store, asked elsewhere: the answers of every export beside the state's own, on 200 prompts.

A store is made, a batch of facts edited, and the state exported in every format. Each export is then loaded by the
library that it is for, in a process of its own that knows nothing of this package (`benchmarks/reading_exports.py`):
transformers, the script beside a delta, PEFT, and llama.cpp for GGUF files (xllamacpp, under the Python that
--llama-cpp names, where it may be in an environment with nothing else). A format that is exact has to answer as the
state does; of an adapter and of packed files it is counted how many answers differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from lifelong_edit import Fact, Timeline
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.export.formats import export
from lifelong_edit.facts import general_prompts
from lifelong_edit.models import LoadedModel, Overlay, generate_greedy
from lifelong_edit.models.places import locate
from lifelong_edit.timeline.defaults import default_preserved, default_text

PROMPTS = 200
EXACT = ("transformers", "delta", "gguf float32")
SUBJECTS = ("Avalor", "Brevia", "Corinth Bay", "Dunmarsh", "Eldova", "Fernholt", "Galvany", "Hollin")
CITIES = ("Lutz", "Sarn", "Ombria", "Tarn", "Quell", "Veyra", "Nimes", "Dover")
WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("transformers", "transformers", {}),
    ("delta", "delta", {}),
    ("peft, the default", "peft", {}),
    ("peft, rank 4", "peft", {"rank": 4}),
    ("peft, rank 16", "peft", {"rank": 16}),
    ("gguf float32", "gguf", {"dtype": "float32"}),
    ("gguf float16", "gguf", {"dtype": "float16"}),
    ("gguf q8_0", "gguf", {"dtype": "q8_0"}),
)
"""A name, the format, and what is asked of it."""


def facts_for(model: str, count: int) -> list[Fact]:
    """New facts: of the world of the bundled model, else made-up capitals."""
    if model == "atlas":
        from lifelong_edit.atlas import edits_validation_path
        from lifelong_edit.facts import read_facts

        return [
            record.fact for record, _ in zip(read_facts([str(edits_validation_path())]), range(count), strict=False)
        ]
    named = zip(SUBJECTS, CITIES, strict=True)
    return [Fact(prompt=f"The capital of {name} is", target=city, subject=name) for name, city in named][:count]


def prompts_for(model: str, facts: Sequence[Fact]) -> list[str]:
    """Those of the facts, their rephrases, and prompts that nobody edited."""
    others = [
        probe.prompt for probe in (default_preserved(model, "gradient") if model == "atlas" else general_prompts())
    ]
    asked = [fact.prompt for fact in facts] + [text for fact in facts for text in fact.rephrases[:1]]
    if model != "atlas":
        asked += [
            form.format(name) for name in SUBJECTS for form in ("{} is ruled from", "People in {} speak", "In {} the")
        ]
        others += [probe.question for probe in general_prompts() if probe.question]
    return list(dict.fromkeys([*asked, *others]))


def asked_elsewhere(python: str, kind: str, out: Path, base: str, job: Path) -> list[str]:
    """What a library of its own says, in a process of its own."""
    answers = job.with_name("answers.json")
    script = Path(__file__).with_name("reading_exports.py")
    subprocess.run(
        [python, script, kind, out, base, job, answers], check=True, cwd=job.parent, stdout=subprocess.DEVNULL
    )
    found: list[str] = json.loads(answers.read_text(encoding="utf-8"))
    return found


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What came of it, by way."""
    facts = facts_for(arguments.model, arguments.facts)
    prompts = prompts_for(arguments.model, facts)[: arguments.prompts]
    few = {} if arguments.model == "atlas" else {"text": default_text()[:8], "preserve": []}
    settings = rule_of(arguments.editor).settings(**json.loads(arguments.settings))
    begun = time.perf_counter()
    with Timeline.create(folder / "store", model=arguments.model, settings=settings, **few) as timeline:
        timeline.apply(facts, gate=lambda *_: {})
        loaded, overlay = timeline.bench().loaded, timeline.overlay("head")
    edited = time.perf_counter() - begun
    base = locate(arguments.model).path
    with loaded.at({}):
        before = _said(loaded, prompts, arguments.tokens)
    with loaded.at(overlay):
        wanted = _said(loaded, prompts, arguments.tokens)
    job = folder / "job.json"
    job.write_text(json.dumps({"prompts": prompts, "tokens": arguments.tokens, "context": min(loaded.context, 512)}))
    rows = {}
    for name, kind, options in WAYS:
        if (kind == "gguf" and not arguments.llama_cpp) or kind not in arguments.formats.split(","):
            continue
        rows[name] = _row(loaded, overlay, folder / "out", kind, options, base, job, wanted, arguments.llama_cpp)
        print(name, json.dumps(rows[name]), file=sys.stderr)
        if name in EXACT and kind != "gguf" and rows[name]["differ"]:
            raise SystemExit(
                f"{name} is exact, and answers {rows[name]['differ']} of {len(prompts)} prompts differently"
            )
    changed = sum(one != other for one, other in zip(before, wanted, strict=True))
    return {
        "model": Path(arguments.model).name,
        "editor": arguments.editor,
        "facts": len(facts),
        "prompts": len(prompts),
        "tokens": arguments.tokens,
        "answers_changed_by_the_edit": changed,
        "seconds_to_edit": round(edited, 1),
        "formats": rows,
    }


def _said(loaded: LoadedModel, prompts: Sequence[str], tokens: int) -> list[str]:
    """One at a time, as the readers ask."""
    decode = loaded.tokenizer.decode
    return [
        decode(ids, skip_special_tokens=True) for ids in generate_greedy(loaded, list(prompts), tokens, batch_size=1)
    ]


def _row(
    loaded: LoadedModel,
    overlay: Overlay,
    out: Path,
    kind: str,
    options: dict[str, Any],
    base: str,
    job: Path,
    wanted: list[str],
    llama_cpp: str,
) -> dict[str, Any]:
    """An export written, loaded elsewhere, and asked."""
    begun = time.perf_counter()
    told = export(kind, loaded, overlay, out, force=True, **options)  # type: ignore[arg-type]
    written = time.perf_counter() - begun
    begun = time.perf_counter()
    found = asked_elsewhere(llama_cpp if kind == "gguf" else sys.executable, kind, out, base, job)
    about = told.get("lora", told.get("gguf", {}))
    return {
        "differ": sum(one != other for one, other in zip(found, wanted, strict=True)),
        "megabytes": round(sum(file.stat().st_size for file in out.iterdir()) / 1e6, 2),
        **{name: about[name] for name in ("rank", "error", "type") if name in about},
        "seconds_to_write": round(written, 1),
        "seconds_elsewhere": round(time.perf_counter() - begun, 1),
    }


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--editor", default="gradient")
    parser.add_argument("--settings", default="{}", help="of the rule, as JSON")
    parser.add_argument("--facts", type=int, default=17)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--formats", default="transformers,delta,peft,gguf")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--llama-cpp", default="", metavar="PYTHON", help="a Python with xllamacpp; without it no gguf")
    parser.add_argument("--name", default="exports-atlas", help="of the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(arguments, Path(folder))
    common.write(arguments.name, found)


if __name__ == "__main__":
    main()
