"""What a fact is asked in: its own words, its prompt behind contexts, and what is said of its subject besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lifelong_edit.bench import Bench
from lifelong_edit.editors.search.material import anchored, behind_contexts
from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact
from lifelong_edit.models import Encoded
from lifelong_edit.tracing.rows import Row, by_fact, fact_rows, without_mention


@dataclass(frozen=True)
class Asked:
    """The rows of one fact, each anchored at the last token of its subject. own: its prompt comes first."""

    own: Sequence[Row]
    behind: Sequence[Row]

    @property
    def rows(self) -> list[Row]:
        """All of them, the prompt first."""
        return [*self.own, *self.behind]

    def weights(self, evenly: bool) -> list[float]:
        """How much of the fact's key each row is, together 1.

        evenly: all alike, as in ROME; else MEMIT's mean of the means of two groups, own words and behind contexts.
        """
        groups = [len(group) for group in (self.own, self.behind) if group]
        if evenly:
            return [1 / sum(groups)] * sum(groups)
        return [1 / (len(groups) * size) for size in groups for _ in range(size)]


def own_rows(
    bench: Bench, facts: Sequence[Fact], phrasings: int, replaced: Mapping[str, Sequence[Fact]] | None = None
) -> dict[str, list[Row]]:
    """By digest the rows of facts in their own words, anchored: those that mention the subject.

    Raises BadInputError for a fact whose subject none of them mentions.
    """
    rows = fact_rows(bench.loaded, facts, phrasings, replaced=replaced)
    without_mention(bench.loaded.modules, facts, rows)
    return by_fact(facts, (anchored(row) for row in rows if row.encoded.subject != (0, 0)))


def asked_of(
    bench: Bench,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    phrasings: int,
    replaced: Mapping[str, Sequence[Fact]] | None = None,
) -> list[Asked]:
    """What facts are asked in, in their order."""
    own = own_rows(bench, facts, phrasings, replaced)
    return [Asked(own[fact.digest], behind_contexts(bench, fact, contexts, "new")) for fact in facts]


def essence(bench: Bench, fact: Fact) -> Row | None:
    """The row of "{subject} is a" up to one token after the subject's last, where what follows has to stay.

    Its only answer position is the subject's last token. None where the tokenizer cannot tell which that is, or the
    model has no room.
    """
    try:
        said = bench.task.encode_said(bench.loaded, f"{fact.about} is a", (), fact.about)
    except BadInputError:
        return None
    end = said.subject[1]
    if not 0 < end < len(said.ids):
        return None
    return Row(Encoded(said.ids[: end + 1], end, (end - 1, end)), "preserved", fact=fact.digest)
