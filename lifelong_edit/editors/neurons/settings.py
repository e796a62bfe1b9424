"""The settings of the rule that gives each fact neurons of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lifelong_edit.editors.search.settings import SearchingSettings
from lifelong_edit.settings import AtLeastOne, BelowOne, Count, NotNegative, Positive

if TYPE_CHECKING:
    from lifelong_edit.models.families import Positions


class Gating(NamedTuple):
    """The settings of gates, all of them settled."""

    own: float
    apart: float
    gate_ridge: float
    opens: float


_USUAL: dict[str, Gating] = {"subject": Gating(0.05, 0.001, 1e-3, 0.2), "answer": Gating(0.1, 0.01, 1e-6, 0.35)}
"""What those that are none come to, by where neurons are grown: chosen on SmolLM2-135M-Instruct, and on a MiniLM fact
checker."""


class NeuronsSettings(SearchingSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `neurons`. The defaults were chosen on SmolLM2-135M-Instruct with training facts alone."""

    editor: str = "neurons"
    """The editing rule."""
    rounds: AtLeastOne = 25
    """The most rounds of a search: one forward and one backward pass each, over the facts that have not taken yet."""
    more_rounds: Count = 50
    """How many further ones those facts of a batch may have that have not taken after these: in some form a token of
    their target is not the most probable one after its prompt."""
    rate: Positive = 0.3
    """The step of the first round (Adam's rate), in root mean squares of the layer's states. It falls to a tenth."""
    swapped: Count = 2
    """In whose prompts' words the gates of a batch are told what not to answer to: so many other subjects a fact."""
    reconsolidation_rounds: AtLeastOne = 25
    """The most rounds over each part of the facts in a reconsolidation."""
    around: NotNegative = 1.0
    """Weight of all tokens of the preserved prompts beside those of ordinary text (1), where a gate has to be shut."""
    others: NotNegative = 0.5
    """Weight of the prompts' other subjects, and of the other facts' subjects, there."""
    own: Positive | None = None
    """Weight of each of a fact's own prompts, where its gate has to be open: so many times all of ordinary text. None:
    0.05, of a classifier 0.1."""
    apart: Positive | None = None
    """Weight of each prompt with the last word of the subject alone, and of each other subject at which a gate opened:
    there it has to be shut. None: 0.001, of a classifier 0.01."""
    gate_ridge: Positive | None = None
    """λ of the gates' ridge regression, as a share of the mean square of the layer's inputs. None: 10⁻³, of a
    classifier 10⁻⁶."""
    opens: BelowOne | None = None
    """A gate begins to open where its regression says so much: 1 is its subject, or its claim, −1 is anything else.
    None: 0.2, of a classifier 0.35."""
    width: Positive = 0.2
    """So much further on it is open."""
    thinned: BelowOne = 0.7
    """Each round asks a fact's plain prompt once more with a part of the words behind its subject left out: this
    share of their tokens. What is taught so hangs on the subject and not on the wording. 0: not asked."""
    essence: NotNegative = 0.0
    """Weight of what the base model says of the subject by itself, beside a fact's own loss: how much a fact may change
    what else is said of its subject (after the essence of Meng et al., arXiv 2202.05262)."""

    def gating(self, where: Positions) -> Gating:
        """The settings of gates where neurons are grown there."""
        given = {name: getattr(self, name) for name in Gating._fields}
        return _USUAL[where]._replace(**{name: value for name, value in given.items() if value is not None})
