"""An export, asked by the library that it is for: a script by itself, which knows nothing of this package.

python reading_exports.py FORMAT FOLDER BASE JOB ANSWERS: JOB holds the prompts, and how many tokens to write on. What
each library writes on is greedy, one prompt at a time, in float32.
"""

from __future__ import annotations

import json
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answers = Callable[[str], str]


def by_transformers(folder: Path, base: str, job: dict[str, Any]) -> Answers:
    """The whole model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return _greedy(
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), AutoTokenizer.from_pretrained(folder), job
    )


def by_apply(folder: Path, base: str, job: dict[str, Any]) -> Answers:
    """The change alone, put on the base by the script that came with it."""
    whole = folder.with_name(f"{folder.name}-whole")
    runpy.run_path(str(folder / "apply.py"))["main"](base, str(whole), folder)
    return by_transformers(whole, base, job)


def by_peft(folder: Path, base: str, job: dict[str, Any]) -> Answers:
    """The adapter beside the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft about a name of transformers
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), folder)
    return _greedy(model, AutoTokenizer.from_pretrained(base), job)


def by_llama_cpp(folder: Path, base: str, job: dict[str, Any]) -> Answers:
    """The GGUF file, by llama.cpp (the package xllamacpp)."""
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path = str(folder / "model.gguf")
    asked.n_ctx, asked.n_parallel, asked.warmup, asked.verbosity = job["context"], 1, False, -1
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
    # Otherwise keys and values are kept in half precision, which is not the file's doing.
    asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(asked)

    def answer(prompt: str) -> str:
        body = {"prompt": prompt, "max_tokens": job["tokens"], "temperature": 0, "cache_prompt": False}
        found: str = server.handle_completions(body)["choices"][0]["text"]
        return found

    return answer


def _greedy(model: Any, tokenizer: Any, job: dict[str, Any]) -> Answers:
    import torch

    def answer(prompt: str) -> str:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            new = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=job["tokens"], do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        found: str = tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
        return found

    return answer


READERS: dict[str, Callable[[Path, str, dict[str, Any]], Answers]] = {
    "transformers": by_transformers,
    "delta": by_apply,
    "peft": by_peft,
    "gguf": by_llama_cpp,
}


if __name__ == "__main__":
    kind, folder, base, job, out = sys.argv[1:]
    asked = json.loads(Path(job).read_text(encoding="utf-8"))
    answers = READERS[kind](Path(folder), base, asked)
    Path(out).write_text(json.dumps([answers(prompt) for prompt in asked["prompts"]]), encoding="utf-8")
