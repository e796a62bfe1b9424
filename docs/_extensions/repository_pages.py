"""Pages of the repository's root in the site, and links that hold in both.

Links are written for the repository, where SECURITY.md stands beside docs/. The site has no parent folder: there the
stub docs/security.md is filled with the text of the file, and links to the file lead to it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

PAGES = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md", "security": "SECURITY.md"}
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>(?!https?://|mailto:)[^)#\s]+)(?P<anchor>#[^)\s]+)?\)")


def relinked(text: str, folder: Path, docs: Path) -> str:
    """`text`, Markdown that stands in `folder`, with its links as they have to be for a page in `docs`.

    A link to a root page leads to its stub, one to another file to the file, of which the site keeps a copy. A folder
    has no place in the site: what remains is the text.
    """
    stubs = {docs.parent / name: docs / f"{stub}.md" for stub, name in PAGES.items()}

    def moved(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / link["path"]))
        if target.is_dir():
            return link["text"]
        path = Path(os.path.relpath(stubs.get(target, target), docs)).as_posix()
        return f"[{link['text']}]({path}{link['anchor'] or ''})"

    return LINK.sub(moved, text)


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fill a stub; mend the links of every page that stands in docs/ itself."""
    docs = Path(app.srcdir)
    if docname in PAGES:
        page = docs.parent / PAGES[docname]
        app.env.note_dependency(str(page))
        source[0] = relinked(page.read_text(encoding="utf-8"), docs.parent, docs)
    elif "/" not in docname:
        source[0] = relinked(source[0], docs, docs)


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen to every page that is read."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
