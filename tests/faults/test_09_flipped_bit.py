"""9. A flipped bit anywhere: the record is named, or nothing is different. No wrong weight is served.

`fsck` names every damaged record of a store; what is tested here is that whatever reads one names it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb
import msgspec
import pytest

from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.stores import EditLog, StepRecord
from lifelong_edit.stores.environment import TABLES
from tests.faults import flips, small

MakeStore = Callable[..., EditLog]
AddStep = Callable[..., StepRecord]
RunPython = Callable[..., str]


@pytest.mark.parametrize("writing", [False, True])
def test_in_every_region_of_the_file(tmp_path: Path, run_python: RunPython, writing: bool) -> None:
    """400 bits by chance, for commands that read and for those that write; `make faults` flips very many."""
    code = """
        import sys
        from pathlib import Path
        from tests.faults import flips
        folder = Path(sys.argv[1])
        flips.create(folder / "store")
        data = (folder / "store" / "data.mdb").read_bytes()
        counts, bad = flips.sweep(folder, flips.at_random(data, 400), writing=sys.argv[2] == "True")
        print(*bad, flips.table(counts), sep="\\n")
    """
    said = run_python(code, tmp_path, writing)
    assert {line.split()[0] for line in said.splitlines()} == {"meta", "branch", "leaf", "tensor"}, said
    assert said.count(" named ") == 4, said


def test_every_bit_of_the_meta_pages_that_tells_the_newest_state(tmp_path: Path, run_python: RunPython) -> None:
    """The numbers of transactions and the roots: LMDB would go back to the state before, or further."""
    code = """
        import sys
        from pathlib import Path
        from tests.faults import flips
        folder = Path(sys.argv[1])
        flips.create(folder / "store")
        where = [(4096 * page + at, bit) for page in (0, 1) for at in (80, 81, 128, 129, 144, 145) for bit in range(8)]
        counts, bad = flips.sweep(folder, where, writing=True)
        print(*bad, sep="\\n")
    """
    assert run_python(code, tmp_path).strip() == ""


def test_in_the_kind_of_a_page(tmp_path: Path, run_python: RunPython) -> None:
    """LMDB takes it at its word, and ends the process by a failed assertion or SIGBUS."""
    code = """
        import sys
        from pathlib import Path
        from tests.faults import flips
        folder = Path(sys.argv[1])
        flips.create(folder / "store")
        data = (folder / "store" / "data.mdb").read_bytes()
        pages = [page for page in range(2, len(data) // 4096) if flips.region(data, page) in ("branch", "leaf")]
        where = [(4096 * page + 10, bit) for page in pages for bit in (0, 1, 2)]
        counts, bad = flips.sweep(folder, where, writing=False)
        print(*bad, sep="\\n")
    """
    assert run_python(code, tmp_path).strip() == ""


def test_in_the_number_of_a_transaction_is_called_what_it_is(make_store: MakeStore, add_step: AddStep) -> None:
    """LMDB would take the state before for the newest, which HEAD tells, but as an older copy."""
    log = make_store()
    add_step(log)
    log.close()
    data = log.path / "data.mdb"
    sound = data.read_bytes()
    numbers = [int.from_bytes(sound[4096 * page + 144 :][:8], "little") for page in (0, 1)]
    for page, number in enumerate(numbers):
        for bit in range(16):
            changed = number ^ 1 << bit
            with data.open("r+b") as file:
                file.seek(4096 * page + 144)
                file.write(changed.to_bytes(8, "little"))
            # The one number that the page may have had: LMDB leaves it there where the newest could not be written.
            match = "was acknowledged" if changed == number - 2 == max(numbers) - 2 else "damaged meta pages"
            with pytest.raises(StoreDamagedError, match=match):
                EditLog.open(log.path, read_only=True)
            with data.open("r+b") as file:
                file.seek(4096 * page + 144)
                file.write(number.to_bytes(8, "little"))
    EditLog.open(log.path, read_only=True).close()


@pytest.mark.parametrize("table", [t for t in TABLES if t != "references"])
def test_in_any_table_names_the_record(make_store: MakeStore, add_step: AddStep, table: str) -> None:
    log = make_store()
    add_step(log)
    log.keep_measurement(small.measurement(1))
    log.close()
    flip(log.path, table)
    with (
        pytest.raises(StoreDamagedError, match="blob" if table == "blobs" else f"{table}/"),
        EditLog.open(log.path) as again,
    ):
        small.content(again)
        again.measurements()


def test_in_a_reference_count_stops_writing_and_no_reading(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    record = add_step(log)
    log.close()
    flip(log.path, "references", str(record.shift).encode())
    with pytest.raises(StoreDamagedError, match=f"references/{record.shift}"):
        EditLog.open(log.path)
    with EditLog.open(log.path, read_only=True) as reader:
        assert small.is_whole(reader)


@pytest.mark.parametrize("table", ["places", "references"])
@pytest.mark.parametrize("harm", ["lost", "renamed"])
def test_a_derived_record_that_is_not_found_is_missed(
    make_store: MakeStore, add_step: AddStep, table: str, harm: str
) -> None:
    """It would be taken for one that was never written: a fact applied twice, a tensor dropped that a step names."""
    log = make_store()
    add_step(log, snapshot=True)
    log.close()
    env = lmdb.open(str(log.path), map_size=0, max_dbs=len(TABLES), create=False)
    with env.begin(write=True, db=env.open_db(table.encode(), create=False)) as transaction:
        key, value = next(iter(transaction.cursor()))
        transaction.delete(key)
        if harm == "renamed":
            transaction.put(key[:-1] + bytes([key[-1] ^ 1]), value)
    env.close()
    with pytest.raises(StoreDamagedError, match=f"{table}/.* is missing|record {table}/.* has digest"):
        EditLog.open(log.path)


def test_a_place_without_a_step_survives_a_lost_transaction(make_store: MakeStore, tmp_path: Path) -> None:
    """Where the newest meta page is damaged, LMDB goes back by one transaction; that has it as well."""
    flips.create(tmp_path / "store", steps=2)
    with EditLog.open(tmp_path / "store", read_only=True) as log:
        wanted = log.idle()
    data = tmp_path / "store" / "data.mdb"
    pages = data.read_bytes()[:8192]
    newest = max(range(2), key=lambda page: int.from_bytes(pages[page * 4096 + 144 :][:8], "little"))
    number = int.from_bytes(pages[newest * 4096 + 144 :][:8], "little")
    with data.open("r+b") as file:  # as LMDB itself leaves it where the page could not be written
        file.seek(newest * 4096 + 144)
        file.write((number - 2).to_bytes(8, "little"))
    with EditLog.open(tmp_path / "store", read_only=True) as log:
        assert log.idle() == wanted


def flip(path: Path, table: str, key: bytes | None = None) -> None:
    """Change one bit of each stored value as a bad disk would: LMDB itself does not notice."""
    env = lmdb.open(str(path), map_size=0, max_dbs=len(TABLES), create=False)
    tables = {name: env.open_db(name.encode(), create=False) for name in TABLES}
    with env.begin(write=True, db=tables[table]) as transaction:
        items = [(bytes(k), bytes(v)) for k, v in transaction.cursor() if key in (None, bytes(k))]
        assert items
        for name, value in items:
            transaction.put(name, value[:-1] + bytes([value[-1] ^ 4]))
    env.close()


def test_an_intact_step_of_another_history_is_named(make_store: MakeStore, add_step: AddStep) -> None:
    """Its own digest holds, and that of the chain does not."""
    log = make_store()
    add_step(log)
    add_step(log)
    changed = msgspec.structs.replace(log.step(1), reason="another")
    from lifelong_edit.stores.codec import encode_step
    from lifelong_edit.stores.tables import Tables, step_key

    environment = log._environment
    environment.write(lambda t: Tables(environment, t).put("steps", step_key(1), encode_step(changed)))
    with pytest.raises(StoreDamagedError, match="step 2 does not follow step 1"):
        log.steps()
