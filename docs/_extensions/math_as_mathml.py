"""LaTeX to MathML at build time: browsers show it by themselves, without a script, a font or a network."""

from __future__ import annotations

from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.writers.html5 import HTML5Translator

# The bars of a norm, which browsers would stretch one by one, as far as what hangs on each.
_BAR, _SHORT_BAR = "<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>'


class FormulaError(SphinxError):
    """A formula that would be shown wrong."""

    category = "formula"


def mathml(latex: str, *, display: bool) -> str:
    """A <math> element. Raises FormulaError where a command is unknown, which the converter would print as it is."""
    # The converter knows `aligned`, which every host knows, by another name.
    known = latex.replace("{aligned}", "{split}")
    element = convert(known, display="block" if display else "inline").replace(_BAR, _SHORT_BAR)
    try:
        odd = [leaf.text for leaf in ElementTree.fromstring(element).iter() if (leaf.text or "").startswith("\\")]
    except ElementTree.ParseError as error:
        raise FormulaError(f"{latex!r} gives no well-formed MathML ({error}); write it otherwise") from error
    if odd:
        raise FormulaError(f"{latex!r} has {', '.join(map(str, odd))}, unknown to latex2mathml; write it otherwise")
    return element


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    """`$…$`."""
    translator.body.append(mathml(node.astext(), display=False))
    raise nodes.SkipNode


def visit_display(translator: HTML5Translator, node: nodes.math_block) -> None:
    """```math, in a box of its own that scrolls where the screen is narrow."""
    translator.body.append(f'<div class="formula">{mathml(node.astext(), display=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the renderer to `html_math_renderer`."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
