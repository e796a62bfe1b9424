"""What is in the wheel, and that it runs where no source tree is near."""

from __future__ import annotations

import json
import tomllib
import zipfile
from pathlib import Path
from typing import Protocol

REPOSITORY = Path(__file__).resolve().parents[2]
ATLAS = REPOSITORY / "lifelong_edit" / "atlas"


class Installed(Protocol):
    """The clean environment of conftest.py."""

    bin: Path

    def run(self, *command: str, cwd: Path | None = None) -> str: ...


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_one_top_level_package(wheel: Path) -> None:
    """`eval`, `stores` and `policies` stand at the top of the repository, and must not in site-packages."""
    tops = {name.split("/")[0] for name in members(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lifelong_edit"}


def test_every_module_is_in_the_wheel(wheel: Path) -> None:
    """A package that somebody forgot to list in pyproject.toml is missing only for users: find it here."""
    wanted = {"lifelong_edit/py.typed"}
    for folder, name in (("lifelong_edit", ""), ("stores", "stores/"), ("policies", "policies/"), ("eval", "eval/")):
        for module in (REPOSITORY / folder).rglob("*.py"):
            wanted.add(f"lifelong_edit/{name}{module.relative_to(REPOSITORY / folder).as_posix()}")
    assert wanted <= members(wheel), f"not in the wheel: {sorted(wanted - members(wheel))}"
    assert "lifelong_edit/eval/__init__.py" in wanted


def test_atlas_is_in_the_wheel(wheel: Path) -> None:
    """The bundled model, its hypernetwork and the data that it was trained on."""
    files = {path for path in ATLAS.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    wanted = {f"lifelong_edit/atlas/{path.relative_to(ATLAS).as_posix()}" for path in files}
    assert wanted <= members(wheel), f"not in the wheel: {sorted(wanted - members(wheel))}"
    assert any(name.startswith("lifelong_edit/atlas/model/") and name.endswith(".safetensors") for name in wanted)


def test_atlas_keeps_to_its_size(wheel: Path) -> None:
    """Model and hypernetwork together: 16 MB at most."""
    shipped = [path for name in ("model", "hypernetwork") for path in (ATLAS / name).rglob("*") if path.is_file()]
    assert shipped
    assert sum(path.stat().st_size for path in shipped) <= 16_000_000


def test_no_leftovers_in_the_wheel(wheel: Path) -> None:
    assert not [name for name in members(wheel) if "__pycache__" in name or name.endswith((".pyc", ".log", ".tmp"))]


def test_the_constraints_cover_every_dependency() -> None:
    """Each direct dependency is pinned, torch without a local part, and no line names a path or an address."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(pin.count("==") == 1 and not set("/@+ ") & set(pin) for pin in pins)
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    assert {
        requirement.split(">=")[0] for requirement in wanted if not requirement.startswith("lifelong-edit[")
    } <= pinned
    assert any(pin.startswith("torch==") for pin in pins)


def test_runs_from_another_folder(installed: Installed) -> None:
    """The program of the clean environment is the wheel's, not the source tree's."""
    assert "Usage:" in installed.run("lifelong-edit", "--help")
    where = installed.run("python", "-c", "import lifelong_edit; print(lifelong_edit.__file__)").strip()
    assert Path(where).is_relative_to(installed.bin.parent)
    evals = installed.run("python", "-c", "import lifelong_edit.eval as e; print(e.__file__)").strip()
    assert Path(evals).is_relative_to(installed.bin.parent)
    assert REPOSITORY not in Path(where).parents


def test_streams_from_another_folder(installed: Installed, tmp_path: Path) -> None:
    """Two facts into the bundled model by the installed program, read back by status and by the Python API."""
    sample = sorted((REPOSITORY / "facts").glob("*.jsonl"))[0]
    lines = [line for line in sample.read_text().splitlines() if line][:2]
    (tmp_path / "two.jsonl").write_text("\n".join(lines) + "\n")
    installed.run("lifelong-edit", "stream", "two.jsonl", "--store", "store", cwd=tmp_path)
    status = json.loads(installed.run("lifelong-edit", "status", "--store", "store", "--json", cwd=tmp_path))
    assert status["live_facts"] == 2
    script = "import sys; from lifelong_edit import Timeline; t = Timeline.open('store', read_only=True); t.log(); "
    script += "t.status(); t.facts(); print(t.head, 'torch' in sys.modules)"
    assert installed.run("python", "-c", script, cwd=tmp_path).split() == [str(status["head"]), "False"]


def test_the_command_line_starts_without_torch(installed: Installed) -> None:
    """`log` and `status` start in a fraction of a second only while the command line imports no torch."""
    script = "import sys, lifelong_edit.cli; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert installed.run("python", "-c", script).strip() == "[]"
