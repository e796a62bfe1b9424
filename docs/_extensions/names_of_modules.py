"""A name means what it means in the module that it is written in.

Left alone Sphinx looks for a name that no page defines for that module among everything that ends in it: `bytes`, the
type, is then a field of some record, and `Batch` one of two classes.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterable
from typing import Any

from docutils.nodes import Element, reference
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.builders import Builder
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment

NOTHING = object()


def meant(module: str | None, within: str | None, name: str) -> object:
    """What a module means by a name, or the modules that a class in it is inherited from; NOTHING if none has it."""
    own = sys.modules.get(module or "")
    found = getattr(own, within or "", None)
    inherited = found.__mro__ if isinstance(found, type) else ()
    places = (own, *(sys.modules.get(base.__module__) for base in inherited), builtins)
    return next((vars(place)[name] for place in places if place is not None and name in vars(place)), NOTHING)


def page_of(found: Any, name: str, documented: Iterable[str]) -> str | None:
    """The documented name of an object; None where no page is about it."""
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
    for other in documented:
        module, _, last = other.rpartition(".")
        if other == home or (last == name and getattr(sys.modules.get(module), name, NOTHING) is found):
            return other
    return None


class NamesOfModules(PythonDomain):
    """Python's names, resolved as the modules themselves do."""

    def resolve_xref(
        self,
        env: BuildEnvironment,
        fromdocname: str,
        builder: Builder,
        type: str,
        target: str,
        node: pending_xref,
        contnode: Element,
    ) -> reference | None:
        """The link to what a name stands for; None, and so no link, for what no page is about."""
        module, within = node.get("py:module"), node.get("py:class")
        found = meant(module, within, target)
        if found is not NOTHING and f"{module}.{within}.{target}" not in self.objects:  # text means the method
            page = page_of(found, target, self.objects)
            if page is None:
                return None
            target = page
        return super().resolve_xref(env, fromdocname, builder, type, target, node, contnode)


def setup(app: Sphinx) -> dict[str, bool]:
    """Take the place of Sphinx's own domain of Python."""
    app.add_domain(NamesOfModules, override=True)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
