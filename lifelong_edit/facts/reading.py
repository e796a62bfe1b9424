"""Facts and prompts from any source, one record at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts.decoding import Element, Value
from lifelong_edit.facts.growing import Known
from lifelong_edit.facts.record import Fact, Probe, Record
from lifelong_edit.facts.shapes import Found, Reader, Skip, entry_of
from lifelong_edit.facts.sources import Source, expand, open_source, open_text

READER = Reader()
"""Of records whose fields go by names that are known, without templates of relations."""
_KEPT_REASONS = 1000
_PRESERVED_REPHRASES = 3
_PROBE_FIELDS = frozenset(Probe.__struct_fields__)


@dataclass
class ReadReport:
    """What a reading has met so far; it grows while the reader is consumed."""

    read: int = 0
    """Facts yielded."""
    bad: int = 0
    skipped_bad: list[str] = field(default_factory=list)
    """`file:line: reason` of the first thousand bad records."""
    skips: Counter[Skip] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    """How many records had each shape, those included that were left out for what they say."""
    unused: Counter[str] = field(default_factory=Counter)
    """Of fields that no reader asked for, by their path: in how many records they had a value."""

    @property
    def not_enough_info(self) -> int:
        """Skipped FEVER claims that are labelled NOT ENOUGH INFO."""
        return self.skips[Skip.NOT_ENOUGH_INFO]

    @property
    def no_target(self) -> int:
        """Skipped zsRE records without an edit target."""
        return self.skips[Skip.NO_TARGET]

    def add(self, found: Found) -> None:
        """Count what a record was read as."""
        self.read += len(found.facts)
        self.shapes[found.shape] += 1
        self.unused.update(found.unused)
        if found.skip is not None:
            self.skips[found.skip] += 1

    def add_bad(self, error: BadInputError) -> None:
        """Count a bad record; the reasons of the first thousand are kept."""
        self.bad += 1
        if len(self.skipped_bad) < _KEPT_REASONS:
            self.skipped_bad.append(str(error))

    def describe(self) -> list[str]:
        """One line for each kind of record that was left out, and one on the fields that were not used."""
        lines = [f"{count} left out: {skip.value}" for skip, count in self.skips.items()]
        if self.unused:
            lines.append(describe_unused(self.unused))
        if self.bad:
            noun = "record" if self.bad == 1 else "records"
            lines.append(f"{self.bad} bad {noun} left out; the first: {self.skipped_bad[0]}")
        return lines


def describe_unused(unused: Mapping[str, int]) -> str:
    """One line on fields that were not used, with the number of records that had each."""
    told = ", ".join(
        f"{name} ({count})" for name, count in sorted(unused.items(), key=lambda part: (-part[1], part[0]))
    )
    return f"fields that were not used (in so many records): {told}"


def read_facts(
    sources: Sequence[str],
    *,
    skip_bad: bool = False,
    report: ReadReport | None = None,
    known: Known | None = None,
    reader: Reader = READER,
) -> Iterator[Record]:
    """The facts of files, globs, `-` (standard input) and `hf:OWNER/NAME[:SPLIT]`, lazily and in order.

    known: what the store that they are for has consumed (`Timeline.consumed_in`), so that the records of a file are
    known again after the file has grown. reader: how records are read, where their fields go by other names or where
    triples need templates. Raises `BadInputError` "file:line: found …, expected …; do …" at the first
    bad record, or with `skip_bad` counts it in `report` and reads on. Raises `UsageError` for a source that cannot be
    opened.
    """
    report = report if report is not None else ReadReport()
    for name in expand(sources):
        with open_source(name, known) as source:
            number, last, nth = 0, 0, 0
            for element in source.elements:
                last, nth = element[0], nth + 1 if element[0] == last else 1
                found = recognise_at(source.name, element, nth, skip_bad=skip_bad, report=report, reader=reader)
                for fact in found:
                    place = source.name, element[0], source.digest, number
                    yield Record(fact, *place, source.earlier(number), entry_of(element[1]))
                    number += 1
                number += not found


def recognise_at(
    name: str, element: Element, nth: int = 1, *, skip_bad: bool, report: ReadReport, reader: Reader = READER
) -> tuple[Fact, ...]:
    """The facts of an element of the source `name`; none where it is left out, which the report then counts.

    nth: which of its line it is, of records that stand in one. Raises `BadInputError`, with file and line, for a bad
    record unless `skip_bad`.
    """
    try:
        found = _recognise_at(name, element, nth, reader)
    except BadInputError as error:
        if not skip_bad:
            raise
        report.add_bad(error)
        return ()
    report.add(found)
    return found.facts


def read_prompts(sources: Sequence[str]) -> Iterator[Probe]:
    """Prompts whose answers shall stay: facts of any shape, `{"prompt": …}` records, or the lines of .txt files.

    Of a fact its prompt and up to three of its rephrases are taken, with `target_true` as the answer: `target` is what
    somebody wants to teach. Of a record with no other fields than a probe's, `target` is the answer. Raises as
    `read_facts`.
    """
    for name in expand(sources):
        if name.endswith(".txt"):
            with open_text(name) as lines:
                yield from (Probe(text) for _, text in lines)
            continue
        with open_source(name) as source:
            for element in source.elements:
                yield from _prompts_at(source, element)


def general_prompts() -> list[Probe]:
    """General prompts of this project's own wording, as beginnings of sentences and as turns: they come with it.

    Knowledge, arithmetic, code, writing, language, manners, lists, daily life, small conclusions: what a model that was
    tuned for conversations is asked when it is not asked for facts.
    """
    return list(read_prompts([str(Path(__file__).with_name("general.jsonl"))]))


def general_names() -> list[str]:
    """Names of people, places, makers, works and other things that everybody knows of: subjects to ask about."""
    return Path(__file__).with_name("names.txt").read_text(encoding="utf-8").splitlines()


def _recognise_at(name: str, element: Element, nth: int, reader: Reader) -> Found:
    line, value = element
    try:
        if isinstance(value, BadInputError):
            raise value
        return reader(value)
    except BadInputError as error:
        # What could not be read at all has no number among the records.
        which = f" (record {nth} of that line)" if nth > 1 and not isinstance(value, BadInputError) else ""
        raise BadInputError(f"{name}:{line}{which}: {error}") from None


def preserved_prompts_of(fact: Fact) -> list[Probe]:
    """What a fact that shall not be taught says of what must stay: its prompt, and up to three of its rephrases."""
    prompts = list(dict.fromkeys((fact.prompt, *fact.rephrases)))[: 1 + _PRESERVED_REPHRASES]
    asked = {fact.prompt: fact.question}
    return [Probe(prompt, fact.target_true, fact.subject, fact.relation, asked.get(prompt)) for prompt in prompts]


def prompts_of(record: Value) -> list[Probe]:
    """The prompts to preserve of a record: a probe's own, or those of a fact of any shape. Raises BadInputError."""
    if _is_probe(record):
        return [Probe(**record)]  # type: ignore[arg-type]
    try:
        found = READER(record)
    except BadInputError as error:
        raise BadInputError(f"{error}; of a prompt to preserve `prompt` alone is enough") from None
    return [probe for fact in found.facts for probe in preserved_prompts_of(fact)]


def _prompts_at(source: Source, element: Element) -> list[Probe]:
    line, value = element
    try:
        if isinstance(value, BadInputError):
            raise value
        return prompts_of(value)
    except BadInputError as error:
        raise BadInputError(f"{source.name}:{line}: {error}") from None


def _is_probe(value: Value) -> bool:
    texts = all(isinstance(part, str) for name, part in value.items() if name != "aliases")
    return "prompt" in value and value.keys() <= _PROBE_FIELDS and texts
