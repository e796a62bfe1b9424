"""Everything that is parsed, fed with what it does not expect: a value, or an error of ours. Nothing else.

`targets` says for each kind of file how one is made and read; `mutate` spoils it. Hypothesis drives the quick form
(test_24_malicious.py), `python -m tests.faults fuzz` a longer one, in processes whose memory is limited, and
`python -m tests.faults atheris` one that is guided by what code it reaches (guided.py).
"""

from __future__ import annotations

import collections
import contextlib
import gzip
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from lifelong_edit.errors import BadInputError, LifelongEditError, StoreDamagedError, StoreKeyError
from lifelong_edit.facts import read_facts, read_prompts
from lifelong_edit.stores import (
    Edit,
    Gate,
    KeyIndex,
    Met,
    Place,
    digest_bytes,
    encode_step,
    encode_tensors,
    require_followable,
    seal,
    unseal,
)
from lifelong_edit.stores.envelopes import Cipher, Envelopes
from lifelong_edit.stores.identity import decode_marker, read_acknowledged
from lifelong_edit.stores.index import INDEX_FILE, INDEX_NOTE, _digest, _Note
from lifelong_edit.stores.keys import read_key_file, unwrap, wrap
from lifelong_edit.stores.measurements import encode_measurement
from lifelong_edit.stores.schema import Encryption
from lifelong_edit.stores.tables import Head, decode, measurement_of, step_of
from lifelong_edit.stores.tensors import decode_shifts
from tests.faults import small

ROOM = 512 << 20
"""Bytes that reading a file of a few kilobytes may take beyond what the process has already."""
WIDTH = 6
FACTS = [digest_bytes(bytes([number])) for number in range(9)]


class Target(NamedTuple):
    """A kind of file: sound samples of it, and what reads one in a folder. Raises what a user may be told."""

    samples: tuple[bytes, ...]
    read: Callable[[bytes, Path], object]


def _source(facts: object) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(tuple(facts)), WIDTH)).astype(np.float32)  # type: ignore[arg-type]


def _facts(data: bytes, folder: Path) -> object:
    for name in ("f.jsonl", "f.jsonl.gz"):
        (folder / name).write_bytes(data)
        list(read_facts([str(folder / name)], skip_bad=True))
        try:
            list(read_facts([str(folder / name)]))
        except BadInputError as error:
            assert error.exit_code == 3 and "\n" not in str(error)
    (folder / "p.txt").write_bytes(data)
    return list(read_prompts([str(folder / "p.txt")]))


def _step(data: bytes, folder: Path) -> object:
    return step_of(1, unseal("steps/1", seal("steps/1", data)))


def _head(data: bytes, folder: Path) -> object:
    (folder / "HEAD").write_bytes(data)
    with contextlib.suppress(StoreDamagedError):
        read_acknowledged(folder)
    with contextlib.suppress(StoreDamagedError):
        decode(data, Head, "head/head")
    return None


def _index(data: bytes, folder: Path) -> object:
    """The digest beside it is right: whoever can write the one can write the other."""
    length = int.from_bytes(data[:4], "little")
    note, body = data[4 : 4 + length], data[4 + length :]
    try:
        fields = json.loads(note)
        fields["digest"] = _digest(body, msgspec.convert(fields, _Note))
        note = json.dumps(fields).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, msgspec.ValidationError):
        pass
    (folder / INDEX_NOTE).write_bytes(note)
    (folder / INDEX_FILE).write_bytes(body)
    index = KeyIndex.open(folder, WIDTH, "chain", _source, FACTS)
    return index.search(_source(range(2)), 3)


def _index_sample() -> bytes:
    import tempfile

    index = KeyIndex(WIDTH, _source)
    index.add(FACTS, _source(FACTS))
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder), "chain")
        note, body = ((Path(folder) / name).read_bytes() for name in (INDEX_NOTE, INDEX_FILE))
    return len(note).to_bytes(4, "little") + note + body


def _network(data: bytes, folder: Path) -> object:
    from lifelong_edit.editors.malmen.network import read_checkpoint

    length = int.from_bytes(data[:4], "little")
    (folder / "config.json").write_bytes(data[4 : 4 + length])
    (folder / "network.safetensors").write_bytes(data[4 + length :])
    return read_checkpoint(folder)


def _network_sample() -> bytes:
    from lifelong_edit.editors.malmen.network import NetworkConfig, NetworkSet

    config = NetworkConfig(form="joint", rank=2, blocks=1, modules=("a", "b"), shapes=((4, 3), (4, 3)))
    text = msgspec.json.encode(config)
    return len(text).to_bytes(4, "little") + text + encode_tensors(NetworkSet(config).tensors())


def _sealed(data: bytes, folder: Path) -> object:
    """A record of an encrypted store. Its digest is right: whoever can write the one can write the other."""
    envelopes = Envelopes(Encryption(wrapped=""), Cipher(bytes(32), "a" * 32))
    return envelopes.unseal("facts/a", seal("facts/a", data))


def _key(data: bytes, folder: Path) -> object:
    """A key file, and a marker's wrapped key."""
    (folder / "key").write_bytes(data)
    with contextlib.suppress(StoreKeyError):
        read_key_file(folder / "key")
    encryption = Encryption(wrapped=data.decode("ascii", "replace"))
    return unwrap([bytes(32)], [encryption], "the store")


def _database(data: bytes, folder: Path) -> object:
    """The pages of a database, walked, and given to LMDB where they can be followed."""
    (folder / "data.mdb").write_bytes(data)
    return require_followable(folder)


def _database_sample() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        with small.create(Path(folder) / "store", map_size=1 << 20) as log:
            small.add(log, size=9)
        return (Path(folder) / "store" / "data.mdb").read_bytes()


def _earlier_step() -> bytes:
    """A step as schema 4 wrote it, with conflicts and what the gate said."""
    met = {"kind": "unrelated", "new": "b" * 32, "old": "f" * 32, "probability": 0.5, "action": "keep", "by": "kind"}
    fields = {"step": 1, "kind": "edit", "parent": 0, "previous": "a" * 32, "time": "t", "added": ["b" * 32]}
    fields |= {"shift": "c" * 32, "keys": "d" * 32, "editor_state": "e" * 32, "weights_digest": "w", "live_digest": "l"}
    fields |= {"report": {"conflicts": [met], "gate": {"asked": 1}, "forecast": {"live": 1}, "x": [1.5, {"y": "z"}]}}
    return msgspec.msgpack.encode(fields)


def targets() -> dict[str, Target]:
    """All kinds of files, made anew."""
    record = Edit(
        step=1, parent=0, previous="a" * 32, time="t", added=("b" * 32,), parts=small.parts("w", shift="c" * 32),
        places=(Place("d" * 32, 3, "e" * 32),), weights_digest="w", live_digest="l", notes={"x": [1.5, {"y": "z"}]},
        conflicts=(Met(kind="unrelated", new="b" * 32, old="f" * 32, action="keep"),), gate=Gate(asked=1, taken=1),
    )  # fmt: skip
    fact = {"subject": "Peru", "prompt": "The capital of Peru is", "target": "Cusco", "rephrases": ["a", "b"]}
    fact |= {"locality": [{"prompt": "x", "target": "y"}], "date": "2031-02", "source": "s"}
    line = json.dumps(fact).encode() + b"\n"
    claim = json.dumps({"claim": "Peru is in Asia.", "label": "REFUTES"}).encode()
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    shifts = encode_tensors({"dense/a": array, "left/b": array, "right/b": array.T.copy()})
    marker = b'{"store_id":"%s","created":"t","schema_version":2,"application":"lifelong-edit"}' % (b"a" * 32)
    head = b'{"store_id":"%s","step":3,"chain":"%s"}' % (b"a" * 32, b"b" * 32)
    return {
        "facts": Target((line * 2 + claim, b"[" + line + b"," + claim + b"]", gzip.compress(line, mtime=0)), _facts),
        "step": Target((encode_step(record), _earlier_step()), _step),
        "marker": Target((marker,), lambda data, _: decode_marker(data, "store.json")),
        "head": Target((head, msgspec.msgpack.encode(Head(3, "c" * 32, "d" * 32))), _head),
        "tensors": Target((shifts,), lambda data, _: decode_shifts(data, "the shift of step 1")),
        "index": Target((_index_sample(),), _index),
        "network": Target((_network_sample(),), _network),
        "measurement": Target((encode_measurement(small.measurement(1)),), lambda data, _: measurement_of(b"1", data)),
        "sealed": Target((Cipher(bytes(32), "a" * 32).encrypt("facts/a", line),), _sealed),
        "key": Target((wrap(bytes(32), bytes(32)).wrapped.encode(),), _key),
        "database": Target((_database_sample(),), _database),
    }


def mutate(choice: random.Random, data: bytes) -> bytes:
    """A few random changes: bits, bytes, numbers at their limits, parts cut out, doubled, or put elsewhere."""
    found = bytearray(data)
    for _ in range(choice.choice((1, 1, 2, 4, 8))):
        at = choice.randrange(len(found) + 1)
        what = choice.randrange(7)
        if what == 0 and found:
            found[at % len(found)] ^= 1 << choice.randrange(8)
        elif what == 1:
            found[at : at + 1] = bytes([choice.choice((0, 10, 34, 44, 91, 93, 123, 125, 127, 128, 255))])
        elif what == 2:
            width = choice.choice((1, 2, 4, 8))
            number = choice.choice((0, 1, 1 << (8 * width - 1), (1 << (8 * width)) - 1, (1 << (8 * width - 2)) + 1))
            found[at : at + width] = number.to_bytes(width, choice.choice(("little", "big")))  # type: ignore[arg-type]
        elif what == 3:
            del found[at : at + choice.randrange(1, 40)]
        elif what == 4:
            found[at:at] = found[at : at + choice.randrange(1, 40)] * choice.choice((1, 2, 50))
        elif what == 5:
            digits = choice.choice(
                (b"-1", b"0", b"1e999", b"999999999999", b"4611686018427387904", b"null", b'"x"', b"[]")
            )
            found[at : at + choice.randrange(3)] = digits
        else:
            found[at:at] = b"[" * choice.choice((1, 20, 2000))
    return bytes(found)


def long_run(folder: Path, cycles: int, seed: int) -> bool:
    """So many spoiled files, as many of each kind, each read in a fork with a limit of memory."""
    passed = True
    for name, target in targets().items():
        counts: collections.Counter[str] = collections.Counter()
        done, share = 0, max(1, cycles // len(targets()))
        while done < share:
            count, how = _one_process(folder, target, range(done, share), f"{seed} {name}")
            counts["read or refused"] += count
            done += count
            if how:
                counts[how] += 1
                (folder.parent / f"fuzz-{name}-{seed}-{done}").write_bytes((folder / "input").read_bytes())
                done, passed = done + 1, False
        print(f"{name:11}" + "".join(f"  {what} {number}" for what, number in sorted(counts.items())), flush=True)
    return passed


def _one_process(folder: Path, target: Target, numbers: range, seed: str) -> tuple[int, str]:
    """How many of the inputs were read or refused, and how the process ended before it was through."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + ROOM
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            for data in inputs(target, numbers, seed):
                (folder / "input").write_bytes(data)
                signal.alarm(30)
                with contextlib.suppress(LifelongEditError):
                    target.read(data, folder)
                os.write(writing, b".")
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}"[:300], file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    os.close(writing)
    count = 0
    while some := os.read(reading, 65536):
        count += len(some)
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return count, signal.Signals(os.WTERMSIG(status)).name
    return count, "another exception" if os.WEXITSTATUS(status) else ""


def inputs(target: Target, numbers: range, seed: str) -> Iterator[bytes]:
    """The spoiled files of these numbers; each a function of its number and the seed."""
    for number in numbers:
        choice = random.Random(f"{seed} {number}")
        yield mutate(choice, choice.choice(target.samples))
