"""6. Map full in mid-batch: it grows and the whole batch is written again, never a part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lifelong_edit.stores import EditLog, Reconsolidate, digest_bytes
from tests.faults import small

MakeStore = Callable[..., EditLog]
RunPython = Callable[..., str]


def test_a_map_of_32_pages_takes_steps_of_many_times_its_size(make_store: MakeStore) -> None:
    log = make_store(map_size=32 * 4096)
    for _ in range(3):
        small.add(log, size=30_000)  # 480 kB each, and as much for the weights
    assert small.is_whole(log)
    assert len(log.blob(str(log.step(3).shift))) > 480_000


def test_keys_that_are_made_one_by_one_are_made_again(make_store: MakeStore) -> None:
    log, begun = make_store(map_size=64 * 4096), []
    chain = log.head().chain
    record = Reconsolidate(step=1, parent=0, previous=chain, time="t", weights_digest="", live_digest="")

    def keys() -> Iterator[bytes]:
        begun.append(True)
        yield from (bytes([number]) * 50_000 for number in range(8))

    log.append(record, facts={}, blobs={}, weights=log.head().weights, keys=keys)
    assert len(begun) == 2
    found = log.step(1)
    assert [log.blob(digest)[0] for digest in found.key_blobs] == list(range(8))
    assert set(found.key_blobs) == set(found.blobs)
    assert all(digest_bytes(log.blob(digest)) == digest for digest in found.key_blobs)


def test_a_reader_in_another_process_follows(make_store: MakeStore, run_python: RunPython) -> None:
    """It has mapped the store at its old size."""
    log = make_store(map_size=32 * 4096)
    log.close()
    code = """
        import os, sys
        from lifelong_edit.stores import EditLog
        from tests.faults import small
        go, back = os.pipe(), os.pipe()
        if not os.fork():
            with EditLog.open(sys.argv[1], read_only=True) as reader:
                os.write(back[1], b"%d" % reader.head().step)
                os.read(go[0], 1)
                os.write(back[1], b"%d%d" % (reader.head().step, small.is_whole(reader)))
            os._exit(0)
        print(os.read(back[0], 1).decode())
        with EditLog.open(sys.argv[1]) as log:
            small.add(log, size=30_000)
            small.add(log, size=30_000)
            os.write(go[1], b"x")
            print(os.read(back[0], 2).decode())
        os.wait()
    """
    assert run_python(code, log.path, timeout=30).split() == ["0", "21"]
