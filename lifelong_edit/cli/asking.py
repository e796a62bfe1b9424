"""Commands that ask the model: ask, eval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import (
    at_option,
    json_option,
    loading_options,
    one_line,
    opened,
    print_json,
    progress_bar,
    say,
    split_names,
    store_option,
)
from lifelong_edit.cli.evaluating import print_evaluation
from lifelong_edit.cli.setup import read_text
from lifelong_edit.errors import UsageError

if TYPE_CHECKING:
    from lifelong_edit.eval.metrics.harness import Harness


@click.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT…")
@at_option
@click.option("--base", is_flag=True, help="Ask the untouched base model; the same as --at 0.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=20, show_default=True, help="At most this many.")
@click.option("--chat", is_flag=True, help="PROMPT is a turn of a conversation, put through the model's chat template.")
@click.option("--system", metavar="TEXT", help="With --chat: the system prompt. Default: the store's.")
@click.option(
    "--turn",
    "turns",
    multiple=True,
    metavar="WHO:TEXT",
    help="With --chat: an earlier turn, `user:…` or `assistant:…`; may be given several times.",
)
@store_option
@loading_options
@json_option
def ask(
    prompts: Sequence[str],
    at: str | None,
    base: bool,
    max_tokens: int,
    chat: bool,
    system: str | None,
    turns: Sequence[str],
    store: Path,
    device: str | None,
    as_json: bool,
) -> None:
    """The model's greedy answer to PROMPT, now or as of a step.

    \b
    Examples:
      lifelong-edit ask "The capital of France is"
      lifelong-edit ask "The capital of France is" --at 3
      lifelong-edit ask "The capital of France is" "The capital of Spain is" --base
      lifelong-edit ask --chat "What is the capital of France?"
    """
    if not chat and (system is not None or turns):
        raise UsageError("found --system or --turn without --chat, expected them with it; add --chat")
    if not all(prompt.strip() for prompt in prompts):
        raise UsageError("found an empty prompt, expected the beginning of a sentence; write it in quotes")
    if base and at is not None:
        raise UsageError("found --base and --at together, expected one of them; --base is --at 0")
    earlier = [_turn(text) for text in turns]
    with opened(store, read_only=True, device=device) as timeline:
        step = 0 if base else timeline.head if at is None else timeline.show(at).step
        told: dict[str, Any] = {"chat": chat, "system": system, "turns": earlier}
        view = timeline.at(step)
        answers = [view.ask(prompt, max_new_tokens=max_tokens, **told) for prompt in prompts]
    found = [{"prompt": p, "step": step, "answer": a.strip()} for p, a in zip(prompts, answers, strict=True)]
    if as_json:
        print_json(found if len(found) > 1 else found[0])
    else:
        click.echo("\n".join(map(one_line, answers)))


def _turn(text: str) -> tuple[str, str]:
    """Who says what, of `user:…` or `assistant:…`."""
    who, colon, said = text.partition(":")
    if who not in ("user", "assistant") or not colon or not said.strip():
        raise UsageError(
            f"found the turn {text[:40]!r}, expected `user:TEXT` or `assistant:TEXT`; say in front of it who speaks"
        )
    return who, said.strip()


@click.command("eval")
@at_option
@click.option(
    "--text",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Text to measure perplexity on. Default: bundled prose that is in no statistics of a store.",
)
@click.option(
    "--probabilities",
    is_flag=True,
    help="Also CounterFact's comparisons of the new answer with the true one, for facts with `target_true`.",
)
@click.option("--fluency", is_flag=True, help="Also the entropy of what the model writes after facts' prompts.")
@click.option("--matrices", is_flag=True, help="Also norms and condition number of each edited matrix.")
@click.option(
    "--tasks",
    metavar="NAMES",
    help="Also tasks of lm-evaluation-harness (an extra: `tasks`), by comma, beside the base model's figures.",
)
@click.option(
    "--tasks-path",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="Tasks of your own, as YAML files; what Python they name is run, so it has to be trusted.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="With --tasks: at most N questions of each.")
@store_option
@loading_options
@json_option
def evaluate(
    at: str | None,
    text: Path | None,
    tasks: str | None,
    tasks_path: Path | None,
    limit: int | None,
    store: Path,
    device: str | None,
    as_json: bool,
    **further: bool,
) -> None:
    """How much of each past batch the model still knows, and what it cost.

    \b
    efficacy    the prompts of the facts in force
    generality  all their rephrases
    unseen      those rephrases that were no rows of a solve
    wrapped     CounterFact's own rephrases, which wrap the prompt into a sentence
    portability what follows from a fact, where its record asks for it; multihop what follows from several
    locality    neighbours that the stream did not edit: the same answer as the untouched base model
    KL          of the next token at these neighbours, from the base model to the edited one, in nats

    Shares of right answers by greedy generation (the target's length and 3 tokens more, ending at a word boundary),
    below also teacher-forced. In brackets 95 % intervals by bootstrap over facts. `natural end`: how often the answer
    was right and then ended, with the text or a sentence; not looked at for locality. Perplexity is that of bundled
    prose, or of --text, beside the base model's on the same.

    With --probabilities: how often (ES, PS, NS) and by how much (EM, PM, NM) the new answer is more probable than the
    true one after prompts and paraphrases, and less after neighbours, each answer's probability being the geometric
    mean of its tokens'. With --fluency: the entropy of word pairs and triples in up to 100 sampled tokens, in bits.

    \b
    Examples:
      lifelong-edit eval
      lifelong-edit eval --at 3 --text sample.txt --json
      lifelong-edit eval --probabilities --fluency --matrices
      lifelong-edit eval --tasks hellaswag,arc_easy --limit 200
    """
    from lifelong_edit.eval.reports.evaluation import evaluate as measure

    sample, harness = None if text is None else read_text(text), _harness(tasks, tasks_path, limit)
    with opened(store, read_only=True, device=device) as timeline:
        say(f"asking {timeline.source}")
        advance, close = progress_bar(None, "questions")
        try:
            found = measure(timeline, at=at, text=sample, tasks=harness, progress=advance, **further)
        finally:
            close()
    if as_json:
        print_json(found.to_json())
    else:
        print_evaluation(found)


def _harness(tasks: str | None, folder: Path | None, limit: int | None) -> Harness | None:
    """The tasks that are asked for, found before the store is opened."""
    names = split_names(tasks or "")
    if not names:
        if tasks is not None or folder is not None or limit is not None:
            raise UsageError("found --tasks-path or --limit without a task, expected --tasks NAME[,NAME] with them")
        return None
    from lifelong_edit.eval.metrics.harness import Harness

    return Harness(names, folder, limit)
