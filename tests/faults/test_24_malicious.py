"""24. Malicious files: no code runs, nothing escapes, memory is bounded by the size of what is read.

A corpus of attacks, each with its script and its verdict, run in a process of its own whose memory is limited; and
generated ones (`fuzz`). `python -m tests.faults fuzz` runs very many of those.
"""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong_edit.errors import LifelongEditError
from tests.faults import fuzz
from tests.faults.running import run_python

LIMITS = r"""
import gzip, json, os, pickle, resource, shutil, struct, sys
from pathlib import Path

class Evil:
    def __reduce__(self):
        return os.system, (f"touch {marker}",)

def limited(extra=256 << 20):
    # A store reserves a terabyte of addresses for its map, so it is allocated memory that is limited.
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + extra, used + extra))

def verdict(function):
    from lifelong_edit.errors import LifelongEditError
    limited()
    try:
        found = function()
        print("taken", "" if found is None else found)
    except LifelongEditError as error:
        print(type(error).__name__, str(error).splitlines()[0][:300])
    print(sorted(path.name for path in room.parent.iterdir()), flush=True)

def attack(number, script):
    global room, marker, evil
    sys.stdout.flush()
    if not (child := os.fork()):
        room = Path(sys.argv[1]) / str(number) / "room"
        room.mkdir(parents=True)
        os.chdir(room)
        marker = room.parent / "ran"
        evil = pickle.dumps(Evil())
        try:
            exec(script, globals())
        except BaseException as error:
            print(type(error).__name__, str(error)[:200], "\n[]", flush=True)
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status:
        print("ended by", status, "\n[]")
"""

STORE = """
from lifelong_edit.stores import EditLog
from tests.faults import flips, small
def put(name, data):
    flips.create(room / "store")
    (room / "store" / name).write_bytes(data)
def opened():
    with EditLog.open(room / "store") as log:
        return small.is_whole(log)
"""
INDEX = """
import msgspec
from lifelong_edit.stores import KeyIndex
from lifelong_edit.stores.index import _digest, _Note
from tests.faults import fuzz
def index(body, **changes):
    good = KeyIndex(fuzz.WIDTH, fuzz._source)
    good.add(fuzz.FACTS, fuzz._source(fuzz.FACTS))
    good.save(room, "chain")
    note = json.loads((room / "keys.json").read_bytes()) | changes
    body = body((room / "keys.faiss").read_bytes())
    (room / "keys.faiss").write_bytes(body)
    note["digest"] = _digest(body, msgspec.convert(note, _Note))  # whoever writes the one can write the other
    (room / "keys.json").write_text(json.dumps(note))
    wanted = good.search(fuzz._source(range(2)), 3)
    def read():
        found = KeyIndex.open(room, fuzz.WIDTH, "chain", fuzz._source, fuzz.FACTS)
        assert [len(row) for row in found.search(fuzz._source(range(2)), 3)] == [3, 3]
    return read
"""
NETWORK = """
from tests.faults import fuzz
from lifelong_edit.editors.malmen.network import read_checkpoint
sample = fuzz._network_sample()
length = int.from_bytes(sample[:4], "little")
config, tensors = json.loads(sample[4 : 4 + length]), sample[4 + length :]
def network(tensors=tensors, **changes):
    (room / "config.json").write_text(json.dumps(config | changes))
    (room / "network.safetensors").write_bytes(tensors)
    return lambda: read_checkpoint(room) and None
"""
FACTS = """
from lifelong_edit.facts import read_facts
def facts(name, data):
    (room / name).write_bytes(data)
    return lambda: len(list(read_facts([str(room / name)])))
"""
MODEL = """
from lifelong_edit.models import load_model
from lifelong_edit.models.places import locate
import lifelong_edit
def model(**files):
    shutil.copytree(locate("atlas").path, room / "model")
    for name, data in files.items():
        (room / "model" / name.replace("__", ".")).write_bytes(data)
    return lambda: load_model(str(room / "model")) and None
config = json.loads((Path(locate("atlas").path) / "config.json").read_bytes())
"""
TENSORS = """
from lifelong_edit.stores import decode_tensors
def file(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body
"""

ATTACKS: dict[str, tuple[str, str, str]] = {
    # name: (what is at hand, script, verdict)
    "tensors: a pickle": (TENSORS, "verdict(lambda: decode_tensors(evil))", "StoreDamagedError"),
    "tensors: a header of 2^62 bytes": (
        TENSORS, "verdict(lambda: decode_tensors((1 << 62).to_bytes(8, 'little') + b'{}'))", "StoreDamagedError",
    ),
    "tensors: a shape of 2^42 numbers": (
        TENSORS,
        "entry = {'dtype': 'F32', 'shape': [1 << 42], 'data_offsets': [0, 4]}\n"
        "verdict(lambda: decode_tensors(file({'a': entry}, b'1234')))",
        "StoreDamagedError",
    ),
    "tensors: shapes whose product overflows": (
        TENSORS,
        "entry = {'dtype': 'F32', 'shape': [1 << 33, 1 << 31], 'data_offsets': [0, 0]}\n"
        "verdict(lambda: decode_tensors(file({'a': entry})))",
        "StoreDamagedError",
    ),
    "tensors: a header nested a million deep": (
        TENSORS, "verdict(lambda: decode_tensors(file(b'[' * 1_000_000)))", "StoreDamagedError",
    ),
    "index: a pickle": (INDEX, "verdict(index(lambda data: evil))", "taken"),
    "index: more vectors than it holds": (
        INDEX, "verdict(index(lambda data: data.replace(struct.pack('<q', 54), struct.pack('<q', 1 << 36))))", "taken",
    ),
    "index: every length at its limit": (
        INDEX, "verdict(index(lambda data: data[:4] + b'\\xff\\xff\\xff\\x7f' * (len(data) // 4)))", "taken",
    ),
    "index: a billion directions": (INDEX, "verdict(index(lambda data: data, directions=10**9, fitted=1))", "taken"),
    "index: negative directions": (INDEX, "verdict(index(lambda data: data, directions=-3))", "taken"),
    "network: a pickle": (NETWORK, "verdict(network(evil))", "BadInputError"),
    "network: a rank of a billion": (NETWORK, "verdict(network(rank=10**9))", "BadInputError"),
    "network: a billion blocks": (NETWORK, "verdict(network(blocks=10**9))", "BadInputError"),
    "network: matrices of a million rows": (NETWORK, "verdict(network(shapes=[[1 << 20, 9]] * 2))", "BadInputError"),
    "network: numbers below zero": (NETWORK, "verdict(network(rank=-1))", "BadInputError"),
    "facts: a gzip file of 512 MiB of one line": (
        FACTS,
        "import zlib\n"
        "deflate, out = zlib.compressobj(9, zlib.DEFLATED, 31), []\n"
        "for _ in range(512): out.append(deflate.compress(b'x' * (1 << 20)))\n"
        "verdict(facts('bomb.jsonl', b''.join(out) + deflate.flush()))",
        "BadInputError",
    ),
    "facts: nested a million deep": (FACTS, "verdict(facts('deep.jsonl', b'[' * 1_000_000))", "BadInputError"),
    "facts: an integer of a million digits": (
        FACTS, "verdict(facts('long.jsonl', b'{\"a\": ' + b'9' * 1_000_000 + b'}'))", "BadInputError",
    ),
    "facts: a pickle": (FACTS, "verdict(facts('f.jsonl', evil))", "BadInputError"),
    "store: a pickle for a database": (
        STORE, "put('data.mdb', evil * 3000); verdict(opened)", "StoreDamagedError",
    ),
    "store: a marker nested a million deep": (
        STORE, "put('store.json', b'[' * 1_000_000); verdict(opened)", "StoreDamagedError",
    ),
    "store: a HEAD that is a pickle": (
        STORE, "put('HEAD', evil); verdict(opened)", "StoreDamagedError",
    ),
    "store: a branch that leads to itself": (
        STORE,
        "flips.create(room / 'store')\n"
        "data = bytearray((room / 'store' / 'data.mdb').read_bytes())\n"
        "pages = [p for p in range(2, len(data) // 4096) if flips.region(bytes(data), p) == 'branch']\n"
        "for page in pages:\n"
        "    at = 4096 * page\n"
        "    for slot in range(16, int.from_bytes(data[at + 12 : at + 14], 'little'), 2):\n"
        "        node = at + int.from_bytes(data[at + slot : at + slot + 2], 'little')\n"
        "        data[node : node + 6] = page.to_bytes(6, 'little')\n"
        "(room / 'store' / 'data.mdb').write_bytes(data); verdict(opened)",
        "StoreDamagedError",
    ),
    "model: pickled weights": (
        MODEL,
        "attack = model(pytorch_model__bin=evil)\n(room / 'model' / 'model.safetensors').unlink(); verdict(attack)",
        "LifelongEditError",
    ),
    "model: a pickle called safetensors": (MODEL, "verdict(model(model__safetensors=evil))", "LifelongEditError"),
    "model: weights outside its folder": (
        MODEL,
        "index = json.dumps({'weight_map': {'transformer.wte.weight': '../outside.safetensors'}}).encode()\n"
        "verdict(model(model__safetensors__index__json=index))",
        "LifelongEditError",
    ),
    "model: a GGUF file with a name of 2^62 bytes": (
        MODEL,
        "(room / 'x.gguf').write_bytes(b'GGUF' + struct.pack('<IQQQ', 3, 1 << 62, 1 << 62, 1 << 62) + bytes(64))\n"
        "verdict(lambda: load_model(str(room / 'x.gguf')))",
        "LifelongEditError",
    ),
    "model: code of its own": (
        MODEL,
        "code = f\"import os; os.system('touch {marker}')\".encode()\n"
        "own = config | {'model_type': 'evil'}\n"
        "own['auto_map'] = {'AutoConfig': 'evil.C', 'AutoModelForCausalLM': 'evil.M'}\n"
        "verdict(model(evil__py=code, config__json=json.dumps(own).encode()))",
        "LifelongEditError",
    ),
    "model: a tokenizer with code of its own": (
        MODEL,
        "code = f\"import os; os.system('touch {marker}')\".encode()\n"
        "own = {'auto_map': {'AutoTokenizer': ['evil.T', None]}, 'tokenizer_class': 'T'}\n"
        "verdict(model(evil__py=code, tokenizer_config__json=json.dumps(own).encode()))",
        "",  # refused or read without it; that no code runs is what counts
    ),
    "names: a tag that is a path": (
        "",
        "from tests.stores.archives import schema_1\nfrom lifelong_edit.timeline import Timeline\n"
        "store = schema_1(room)\n"
        "def tag():\n    with Timeline.open(store) as timeline:\n        timeline.tag('../../escaped')\n"
        "verdict(tag)",
        "UsageError",
    ),
}  # fmt: skip


@functools.cache
def verdicts(at_hand: str) -> dict[str, tuple[str, str]]:
    """What came of each attack that has the same at hand: what was said, and what lies beside its folder."""
    scripts = {name: script for name, (prelude, script, _) in ATTACKS.items() if prelude == at_hand}
    calls = "\n".join(f"attack({number}, {script!r})" for number, script in enumerate(scripts.values()))
    with tempfile.TemporaryDirectory() as folder:
        lines = run_python(f"{LIMITS}\n{at_hand}\n{calls}", folder).strip().splitlines()
    return dict(zip(scripts, zip(lines[::2], lines[1::2], strict=True), strict=True))


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str) -> None:
    at_hand, _, verdict = ATTACKS[name]
    said, beside = verdicts(at_hand)[name]
    assert said.startswith(verdict), said
    assert beside == "['room']", "something came to be outside the folder, or code ran"


def test_an_attack_that_succeeds_is_seen(tmp_path: Path) -> None:
    """The corpus would tell: code that runs leaves its mark, and memory beyond the limit is refused."""
    tries = ("verdict(lambda: pickle.loads(evil))", "verdict(lambda: len(bytearray(1 << 30)))")
    code = "\n".join(f"attack({number}, {script!r})" for number, script in enumerate(tries))
    said = run_python(f"{LIMITS}\n{code}", tmp_path).strip().splitlines()
    assert said[1] == "['ran', 'room']"
    assert said[2].startswith("MemoryError")


@pytest.fixture(scope="module")
def kinds() -> dict[str, fuzz.Target]:
    return fuzz.targets()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


NAMES = ("facts", "step", "marker", "head", "tensors", "index", "network", "measurement", "sealed", "key", "database")


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_parsed_is_read_or_refused(kinds: dict[str, fuzz.Target], room: Path, name: str) -> None:
    """Spoiled files, as many as hypothesis cares to try, and bytes that never were a file."""
    target = kinds[name]
    for sample in target.samples:
        target.read(sample, room)

    def spoiled(seed: int) -> bytes:
        return fuzz.mutate(random.Random(seed), target.samples[seed % len(target.samples)])

    @settings(max_examples=120, deadline=None)
    @given(st.integers(0, 2**32).map(spoiled) | st.binary(max_size=80))
    def check(data: bytes) -> None:
        try:
            target.read(data, room)
        except LifelongEditError as error:
            assert "\n" not in str(error)

    check()


def test_all_kinds_are_tried(kinds: dict[str, fuzz.Target]) -> None:
    assert sorted(kinds) == sorted(NAMES)
