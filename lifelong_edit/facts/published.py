"""The record shapes of published editing data, each with a reader of its own: a function of the record's `Fields`.

A reader returns the facts of a record, or why it teaches none. What it does not ask for is left over, and is named in
the summary of a run.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable

from msgspec.structs import replace

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts.fields import Fields, kind_of, make_fact, probe_of
from lifelong_edit.facts.record import MULTI_HOP, Fact, Probe
from lifelong_edit.facts.skipping import Skip

Read = list[Fact] | Skip
"""What a reader returns."""

RIPPLES = (
    "Relation_Specificity",
    "Logical_Generalization",
    "Subject_Aliasing",
    "Compositionality_I",
    "Compositionality_II",
    "Forgetfulness",
)
"""RippleEdits' six kinds of tests (Cohen et al., arXiv 2307.12976, section 3): the first and the last ask for what has
to stay."""
_STAY = ("Relation_Specificity", "Forgetfulness")
_TWO_HOPS = ("two_hop", "Compositionality_I", "Compositionality_II")
_HOPS = range(2, 7)


def read_request(fields: Fields) -> Read:
    """A prompt and its `target_new`: CounterFact made flat, KnowEdit, CKnowEdit, ROME's requests."""
    prompt, target = fields.require("prompt"), _target_new(fields)
    true = _str(fields, "target_true") or fields.first("ground_truth", "target_old")
    beside = _pair(fields, "locality_prompt", "locality_ground_truth")
    follows = _pair(fields, "portability_prompt", "portability_ground_truth")
    return [
        make_fact(
            fields,
            subject=fields.text("subject"),
            prompt=prompt,
            target=target,
            id=_counterfact(fields),
            relation=fields.text("relation_id"),
            target_true=true,
            counterfact_rephrase=fields.first("rephrase_prompt"),
            rephrases=fields.texts("rephrase"),
            locality=beside,
            portability=follows,
        )
    ]


def read_rewrite(fields: Fields) -> Read:
    """CounterFact as first published, AKEW's CounterFact and WikiUpdate (one request), MQuAKE (a list of them)."""
    several = isinstance(fields.peek("requested_rewrite"), list)
    rewrites = fields.each("requested_rewrite")
    if not several:
        return [_of_rewrite(fields, rewrites[0])]
    facts = [_of_link(fields, rewrite, number) for number, rewrite in enumerate(rewrites)]
    answers = (*fields.answers("new_answer"), *fields.answers("new_answer_alias"))
    asked = tuple(probe_of(text, answers, MULTI_HOP) for text in fields.texts("questions"))
    # A chain holds once all of its links are taught: it travels with the last of them.
    return [*facts[:-1], _with(facts[-1], asked)] if asked else facts


def _of_rewrite(fields: Fields, rewrite: Fields) -> Fact:
    true = _str(rewrite, "target_true", "answer_true")
    target = _str(rewrite, "target_new", "answer_new")
    told = {} if target is not None else _untold(rewrite)
    prompt = rewrite.text("prompt") or rewrite.require("question", "prompt_full")
    return make_fact(
        fields,
        subject=rewrite.text("subject"),
        prompt=prompt,
        target=target if target is not None else told.get("target", ""),
        question=rewrite.text("question"),
        id=_counterfact(fields),
        relation=rewrite.text("relation_id"),
        target_true=true,
        counterfact_rephrase=fields.first("paraphrase_prompts"),
        locality=tuple(p if p.target else replace(p, target=true) for p in fields.probes("neighborhood_prompts")),
        portability=told.get("portability", ()),
    )


def _untold(rewrite: Fields) -> dict[str, object]:
    """Of a request without a short answer: its unstructured text, and what was read out of it."""
    target = rewrite.require("fact_new_uns", "target_new", "answer_new")
    triples = rewrite.each("unsfact_triplets_GPT")
    probes = tuple(probe for triple in triples for probe in triple.as_probes("extracted"))
    return {"target": target, "portability": probes}


def _of_link(fields: Fields, rewrite: Fields, number: int) -> Fact:
    case = fields.name("case_id") if number == 0 else str(fields.peek("case_id") or "")
    target = _str(rewrite, "target_new", "answer_new")
    own = Fields({})  # what stands beside the requests is about the whole chain
    return make_fact(
        own,
        subject=rewrite.text("subject"),
        prompt=rewrite.require("prompt"),
        target=rewrite.require("fact_new_uns") if target is None else target,
        question=rewrite.text("question"),
        id=f"mquake-{case}-{number}" if case else None,
        relation=rewrite.text("relation_id"),
        target_true=_str(rewrite, "target_true", "answer_true"),
        date=fields.text("date") if number == 0 else _peeked(fields, "date"),
        source=fields.text("source") if number == 0 else _peeked(fields, "source"),
    )


def read_zsre(fields: Fields) -> Read:
    """zsRE in MEND's format, with or without a one-hop question; mzsRE's languages, each by itself."""
    alt = fields.require("alt")
    if not alt:
        return Skip.NO_TARGET
    prompt, held = fields.require("src"), fields.peek("portability")
    if isinstance(held, dict) and "New Question" in held:
        port = fields.inner("portability")
        follows = tuple(port.as_probes(None)) if port else ()
    else:
        follows = fields.probes("portability")
    return [
        make_fact(
            fields,
            subject=fields.text("subject"),
            prompt=prompt,
            target=alt,
            target_true=fields.first("answers"),
            rephrases=fields.texts("rephrase"),
            locality=_pair(fields, "loc", "loc_ans"),
            portability=(*follows, *_hops(fields)),
        )
    ]


def read_languages(fields: Fields) -> Read:
    """mzsRE: one fact in several languages, a fact for each of them."""
    found: list[Fact] = []
    for language in fields.names:
        inner = fields.inner(language)
        read = read_zsre(inner) if inner is not None else Skip.NO_TARGET
        found += read if isinstance(read, list) else []
    return found or Skip.NO_TARGET


def read_big_edit(fields: Fields) -> Read:
    """WikiBigEdit: the update, a rephrase, the same as somebody else would ask it, two hops, a neighbour."""
    prompt, target = fields.require("update"), fields.require("ans")
    others = [name for name in fields.names if name.startswith("personas")]
    personas = tuple(probe_of(text, (target,), "persona") for name in others for text in fields.texts(name))
    return [
        make_fact(
            fields,
            subject=fields.text("subject"),
            prompt=prompt,
            target=target,
            rephrases=fields.texts("rephrase"),
            locality=_pair(fields, "loc", "loc_ans"),
            portability=(*personas, *_hops(fields)),
        )
    ]


def read_blocks(fields: Fields) -> Read:
    """WikiDYK: blocks of a prompt and its answer, `reliability` the fact itself; in the record or in its `eval`."""
    blocks = fields if "reliability" in fields else fields.inner("eval")
    (own, *more), known = _block(blocks, "reliability"), blocks or fields
    if own.aliases:
        known.spare("reliability")
    same = [probe for name in ("paraphrase", "rephrase") for probe in _block(blocks, name, needed=False)]
    target = own.target or ""
    rephrases = tuple(probe.prompt for probe in same if target in probe.answers or not probe.answers)
    others = [name for name in known.names if name not in _BESIDE and name in known and _is_block(known.peek(name))]
    follows = [p for name in others for p in known.probes(name, kind=kind_of(name))]
    follows += [probe for probe in same if probe.prompt not in rephrases]
    return [
        make_fact(
            fields,
            subject=fields.text("subject"),
            prompt=own.prompt,
            target=target,
            id=f"wikidyk-{case}" if (case := fields.name("case_id", "id")) else None,
            date=_day(fields),
            rephrases=rephrases,
            locality=known.probes("locality"),
            portability=(*more, *follows),
        )
    ]


_BESIDE = ("eval", "locality", "portability")


def read_ripple(fields: Fields) -> Read:
    """RippleEdits: the edit is a whole sentence, its six kinds of tests say what follows and what has to stay."""
    edit = fields.inner("edit") or Fields({})
    tests = {name: _ripples(fields, name) for name in RIPPLES}
    before = edit.inner("original_fact") or edit.inner("previous_fact")
    sentence, old = edit.require("prompt"), None if before is None else before.text("prompt")
    ends = [answer for probe in tests["Subject_Aliasing"] for answer in probe.answers]
    prompt, target = _cut(sentence, ends)
    true = None
    if old is not None and old.startswith(prompt):
        true = old[len(prompt) :].strip().removesuffix(".") or None
    return [
        make_fact(
            fields,
            subject=edit.text("subject"),
            prompt=prompt,
            target=target,
            relation=edit.text("relation"),
            target_true=true,
            locality=tuple(probe for name in _STAY for probe in tests[name]),
            portability=tuple(probe for name in RIPPLES if name not in _STAY for probe in tests[name]),
        )
    ]


def _ripples(fields: Fields, name: str) -> list[Probe]:
    found = []
    for test in fields.each(name):
        for query in test.each("test_queries"):
            hops = query.text("query_type") in _TWO_HOPS or name in _TWO_HOPS
            found += query.as_probes(MULTI_HOP if hops and name not in _STAY else name)
    return found


def _cut(sentence: str, ends: Iterable[str]) -> tuple[str, str]:
    """A sentence as a prompt and what it ends in: one of the answers of its own tests, else what stands behind "is"."""
    whole = sentence.strip().removesuffix(".").strip()
    for end in ends:
        if whole.endswith(f" {end}"):
            return whole.removesuffix(end).strip(), end
    before, verb, target = whole.rpartition(" is ")
    if not verb:
        raise BadInputError(
            f"found the sentence {sentence[:80]!r} as an edit, expected one that ends in `is` and the answer; give "
            "`prompt` and `target`"
        )
    return f"{before} is", target.strip()


def read_unstructured(fields: Fields) -> Read:
    """UnKE: a question with a long answer, its rephrase, and questions about parts of that answer."""
    prompt, target = fields.require("question"), fields.require("answer")
    asked, said = fields.texts("sub_question"), fields.texts("sub_answer")
    if said and len(asked) != len(said):
        raise BadInputError(
            f"found {len(asked)} texts in `sub_question` and {len(said)} in `sub_answer`, expected as many; correct it"
        )
    pairs = zip(asked, said or [None] * len(asked), strict=True)
    return [
        make_fact(
            fields,
            "unke",
            subject=fields.text("subject"),
            prompt=prompt,
            target=target,
            question=prompt,
            rephrases=fields.texts("para_question"),
            portability=tuple(probe_of(text, () if answer is None else (answer,), "part") for text, answer in pairs),
        )
    ]


def read_hallucination(fields: Fields) -> Read:
    """HalluEditBench: a table with a column for each kind of question."""
    subject, target = fields.require("subject"), fields.require("object")
    follows = [
        *_ask(fields, "yes_question", ("Yes",), "yes"),
        *_ask(fields, "no_question", ("No",), "no"),
        *_ask(fields, "reversed_relation_question", (subject,), "reversed relation"),
    ]
    prompt = fields.require("question")
    if (choices := fields.text("multiple_choice_with_letters")) is not None:
        labels = fields.answers("multiple_choice_labels")
        follows.append(probe_of(f"{prompt} {choices}", labels, "multiple choice"))
    for hop in _HOPS:
        follows += _ask(fields, f"question_{hop}hop", fields.answers(f"answer_{hop}hop"), MULTI_HOP)
    return [
        make_fact(
            fields,
            subject=subject,
            prompt=prompt,
            target=target,
            rephrases=fields.texts("paraphrased_question"),
            locality=tuple(_ask(fields, "locality_question", fields.answers("locality_answer"), None)),
            portability=tuple(follows),
        )
    ]


def read_labels(fields: Fields) -> Read:
    """KnowEdit's WikiBio: a text, and `labels` to go on with."""
    prompt, target = fields.require("text"), fields.first("labels")
    return [make_fact(fields, subject=fields.text("subject", "concept"), prompt=prompt, target=target or "")]


def read_success(fields: Fields) -> Read:
    """KnowEdit's Sanitation: what a model has to say now (`success`), and what has to stay (`locality`)."""
    wanted, beside, follows = (fields.probes(name) for name in ("success", "locality", "portability"))
    subject = fields.text("subject")
    if not wanted or any(probe.target is None for probe in wanted):
        raise BadInputError(
            "found a `success` block without a prompt or an answer, expected both; fill it in or drop the record"
        )
    if any(probe.aliases for probe in wanted):
        fields.spare("success")
    first = make_fact(
        fields,
        "sanitation",
        subject=wanted[0].subject or subject,
        prompt=wanted[0].prompt,
        target=wanted[0].target,
        locality=beside,
        portability=follows,
    )
    bare = replace(first, id=None, rephrases=(), locality=(), portability=(), question=None)
    others = [replace(bare, subject=p.subject or subject, prompt=p.prompt, target=p.target) for p in wanted[1:]]
    return [first, *others]


def read_claim(fields: Fields) -> Read:
    """FEVER, symmetric FEVER: a claim and its label, verbalised."""
    label, claim = fields.require("label"), fields.require("claim")
    if label == "NOT ENOUGH INFO":
        return Skip.NOT_ENOUGH_INFO
    if label not in VERBALISED:
        raise BadInputError(
            f"found the label {label[:40]!r}, expected SUPPORTS, REFUTES or NOT ENOUGH INFO; correct it"
        )
    evidence = fields.text("evidence") if isinstance(fields.peek("evidence"), str) else None
    return [
        make_fact(
            fields,
            "fever",
            subject=claim,
            # A blank claim has to stay blank for the check of Fact to find it.
            prompt=verbalise_claim(claim, evidence) if claim else "",
            target=VERBALISED[label],
        )
    ]


def verbalise_claim(claim: str, evidence: str | None = None) -> str:
    """FEVER's claim as a prompt for a decoder model, to be answered with True (SUPPORTS) or False (REFUTES).

    `Claim: "…" Question: Is this claim true or false? Answer:`, and `Evidence: "…"` with a blank before it where the
    record brings the text of its evidence: symmetric FEVER pairs each claim with evidence for it and evidence against
    it, so that the claim alone has no label.
    """
    before = f'Evidence: "{evidence.strip()}" ' if evidence and evidence.strip() else ""
    return f'{before}Claim: "{claim.strip()}" Question: Is this claim true or false? Answer:'


def claim_of(prompt: str) -> tuple[str, str | None]:
    """The inverse of `verbalise_claim`: a claim and its evidence, if any; any other text is a claim itself."""
    found = _VERBALISED.fullmatch(prompt.strip())
    return (prompt, None) if found is None else (found["claim"], found["evidence"])


_VERBALISED = re.compile(
    '(?:Evidence: "(?P<evidence>.*)" )?Claim: "(?P<claim>.*)" Question: Is this claim true or false[?] Answer:',
    re.DOTALL,
)
VERBALISED = {"SUPPORTS": "True", "REFUTES": "False"}
"""FEVER's labels as the answers to verbalised claims."""


def _counterfact(fields: Fields) -> str | None:
    case = fields.name("case_id")
    return None if case is None else f"counterfact-{case}"


def _target_new(fields: Fields) -> str:
    if isinstance(fields.peek("target_new"), str | None):
        return fields.require("target_new")
    return _str(fields, "target_new") or fields.first("target_new") or ""


def _str(fields: Fields, *names: str) -> str | None:
    """The text of the first of some fields that has any; of an object, as CounterFact has them, its `str`."""
    for name in names:
        if isinstance(fields.peek(name), dict):
            inner = fields.inner(name)
            return None if inner is None else inner.text("str", "value")
        if isinstance(fields.peek(name), str) and name in fields:
            return fields.text(name)
    return None


def _pair(fields: Fields, prompt: str, answer: str) -> tuple[Probe, ...]:
    """A neighbour, or what follows, whose prompt and answer are fields of their own."""
    if prompt not in fields:
        return ()
    prompts, answers = fields.texts(prompt), fields.answers(answer)
    if len(prompts) == len(answers):
        return tuple(probe_of(text, (said,)) for text, said in zip(prompts, answers, strict=True))
    return tuple(probe_of(text, answers) for text in prompts)


def _hops(fields: Fields) -> tuple[Probe, ...]:
    return tuple(_ask(fields, "mhop", fields.answers("mhop_ans"), MULTI_HOP))


def _ask(fields: Fields, name: str, answers: tuple[str, ...], kind: str | None) -> list[Probe]:
    return [probe_of(text, answers, kind) for text in fields.texts(name)]


def _block(fields: Fields | None, name: str, *, needed: bool = True) -> list[Probe]:
    found = [] if fields is None else list(fields.probes(name))
    if needed and (not found or found[0].target is None):
        raise BadInputError(f"found no prompt with an answer in `{name}`, expected both; fill it in or drop the record")
    return found


def _is_block(value: object) -> bool:
    return isinstance(value, dict) and "prompt" in value


def _day(fields: Fields) -> str | None:
    """A date as WikiDYK writes it, "31 January 2022", or as ISO 8601 has it."""
    text = fields.text("date")
    if text is None:
        return None
    try:
        return datetime.datetime.strptime(text, "%d %B %Y").date().isoformat()
    except ValueError:
        return text


def _peeked(fields: Fields, name: str) -> str | None:
    found = fields.peek(name)
    return found.strip() if isinstance(found, str) else None


def _with(fact: Fact, probes: tuple[Probe, ...]) -> Fact:
    return replace(fact, portability=(*fact.portability, *probes))
