"""Power cuts while a store is backed up, compacted and restored, over and over.

Each of these writes a folder anew, and the last two put it in the store's place. After a cut there is a store, sound,
that has what was told last or what came right after it; each backup that was told is there, whole, and one that was
not is whole or has no name; and so is what a restoration keeps beside the store.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from lifelong_edit.atomic import fsync_tree, remove_leftovers
from lifelong_edit.errors import LifelongEditError
from lifelong_edit.settings import KEY_VARIABLE
from lifelong_edit.stores import EditLog, backup, fsck, write_key_file
from lifelong_edit.stores.copying import UNFINISHED
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.keeping import compact, restore
from tests.faults import power
from tests.faults.kills import NOTHING, Count
from tests.stores.archives import schema_1
from tests.stores.conftest import Lived

Told = list[list[str]]
"""What was told: the operation, the number of its round, and the head's step and chain digest after it."""


def templates(folder: Path) -> list[Path]:
    """A store that has lived, in the clear and encrypted, with the key at hand."""
    write_key_file(folder / "key")
    os.environ[KEY_VARIABLE] = str(folder / "key")
    with EditLog.open(schema_1(folder), read_only=True) as log:
        first = log.step(0)
    return [Lived(folder / name, first, encrypt=name == "encrypted").path for name in ("plain", "encrypted")]


def rounds(place: Path, tell: Callable[[str, int, Path], None]) -> None:
    """Back up, go on, compact and restore, until the power goes."""
    store, number = place / "store", 0
    while True:
        number += 1
        backup(store, place / f"copy-{number}")
        tell("backup", number, place / f"copy-{number}")
        with Timeline.open(store) as timeline:
            timeline.tag(f"tag-{number}", 8)
        tell("tag", number, store)
        compact(store)
        tell("compact", number, store)
        restore(place / f"copy-{number}", store)
        tell("restore", number, store)


def keeping_cuts(folder: Path, cycles: int, *, seed: int = 0) -> Count:
    """Cycles in turn with a plain and an encrypted store, the power going up to 1.5 seconds after the beginning."""
    sources, moment, found = templates(folder), random.Random(seed), NOTHING
    place = power.mount(folder)
    for cycle in range(cycles):
        for entry in place.iterdir():
            if entry.name != "lost+found":
                shutil.rmtree(entry)
        shutil.copytree(sources[cycle % len(sources)], place / "store")
        fsync_tree(place)

        def write(pipe: int) -> None:
            def tell(what: str, number: int, path: Path) -> None:
                with EditLog.open(path, read_only=True) as log:
                    head = log.head()
                os.write(pipe, f"{what} {number} {head.step} {head.chain}\n".encode())

            rounds(place, tell)

        told = [line.split() for line in power.cut(place, write, moment.uniform(0.1, 1.5))]
        lost, torn = judge(place, told)
        found += Count(1, len(told), lost, torn)
    subprocess.run(["umount", place], check=True)
    return found


def judge(place: Path, told: Told) -> tuple[int, int]:
    """What of all that was told is lost, and what is torn."""
    backups = {f"copy-{number}": chain for what, number, _, chain in told if what == "backup"}
    lost, torn = 0, 0
    remove_leftovers(place / "store")
    for entry in sorted(place.glob("copy-*")):
        whole = is_sound(entry)
        torn += not whole
        lost += whole and backups.get(entry.name) not in (None, chain_of(entry))
    lost += sum(not (place / name).exists() for name in backups)
    for entry in place.glob("store.replaced-*"):
        torn += not (entry / UNFINISHED).exists() and any(entry.iterdir()) and not is_sound(entry)
    if not is_sound(place / "store", writing=True):
        return lost, torn + 1
    return lost + (not follows(place / "store", told, backups)), torn


def is_sound(store: Path, *, writing: bool = False) -> bool:
    """Whether a store can be opened, as the next command would, and nothing of it is damaged."""
    try:
        with EditLog.open(store, read_only=not writing) as log:
            log.blob(str(log.head().weights))
        return fsck(store).sound
    except LifelongEditError as error:
        print(f"{store}: {error}")
        return False


def chain_of(store: Path) -> str:
    """The chain digest of a store's head."""
    with EditLog.open(store, read_only=True) as log:
        return log.head().chain


def follows(store: Path, told: Told, backups: dict[str, str]) -> bool:
    """Whether a store has the head that was told last, or is the restoration that may have come right after it."""
    states = [line for line in told if line[0] != "backup"]
    with EditLog.open(store, read_only=True) as log:
        last = log.step(log.head().step)
        if last.kind == "restore" and told and last.previous == backups.get(f"copy-{told[-1][1]}"):
            return True
        if not states:
            return True
        step, chain = int(states[-1][2]), states[-1][3]
        later = log.step(step + 1).previous if log.head().step > step else log.head().chain
        return log.head().step >= step and later == chain
