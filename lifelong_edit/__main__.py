"""`python -m lifelong_edit`."""

from __future__ import annotations

from lifelong_edit.cli import main

if __name__ == "__main__":
    main()
