"""The zoo makes a thing once, whoever asks, and keeps nothing half made."""

from __future__ import annotations

import multiprocessing
import re
from pathlib import Path

import pytest

from tests.zoo import Zoo, folder_of_run


def make(folder: Path) -> None:
    folder.mkdir()
    with (folder.parent / "made").open("a") as file:
        file.write("x")
    (folder / "thing").write_text("thing")


def ask(folder: Path) -> None:
    for number in (1, 2):
        assert (Zoo(folder).keep("thing", number, make) / "thing").read_text() == "thing"


def test_made_once_by_several_processes(tmp_path: Path) -> None:
    """Once for each digest of what makes it."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=ask, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "made").read_text() == "xx"


def test_a_copy_is_its_own(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    (zoo.copy("thing", 1, make, tmp_path / "copy") / "thing").write_text("spoiled")
    assert (zoo.keep("thing", 1, make) / "thing").read_text() == "thing"


def test_what_fails_is_not_kept(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        make(folder)
        raise OSError("full")

    zoo = Zoo(tmp_path)
    with pytest.raises(OSError, match="full"):
        zoo.keep("thing", 1, fail)
    assert (zoo.keep("thing", 1, make) / "thing").is_file()


def test_processes_of_a_run_share_a_folder(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.getbasetemp()
    assert folder_of_run(pytestconfig, base).parent.name == re.sub(r"^popen-gw\d+$", base.parent.name, base.name)
