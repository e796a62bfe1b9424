"""A store of a model that is spread over devices is that of the model in one place, to the bit.

Over the CPU and the disk it is accelerate that spreads it. For cards, of which there are none, tensors say where they
are (`tests.cards`): whatever meets a tensor of another card fails as it would there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lifelong_edit.errors import UsageError
from lifelong_edit.export.formats import export
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline import model as timeline_model
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import trace
from lifelong_edit.world import ALONE
from tests.cards import Cards, WrongDevice, put, spread_over
from tests.contracts.conftest import _WAYS, Kept, Options
from tests.contracts.editing import Row, batch, lenient, placed
from tests.contracts.test_editors import QUESTIONS, state_of

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
ON_DISK = {"": "cpu", "transformer.wte": "disk", "lm_head": "disk"}
ROWS = [
    (Row("gradient", "joint"), "solved"),
    *((Row(name, "joint"), "once") for name in ("malmen", "stableedit")),
    *((Row(name), "once") for name in ("mend", "memit", "search", "neurons", "ft", "grace", "coachhook", "wise")),
    *((Row(name), "once") for name in ("serac", "simie+gradient")),
]
"""A rule of each kind, and what is done to its store."""


# -- over the CPU and the disk


def device_map(folder: Path, edited: tuple[int, ...]) -> str:
    """The path of a map that has all but the matrices of some layers on the disk."""
    kept = {f"transformer.h.{i}.mlp.c_proj": "cpu" for i in edited}
    path = folder / "map.json"
    path.write_text(json.dumps({**ON_DISK, "transformer.h": "disk", **kept}))
    return str(path)


def lived(folder: Path, device: str, given: Options) -> dict[str, Any]:
    """What comes of a store that is made, edited, rolled back, edited again, solved again and exported."""
    given = {**given, "settings": given["settings"].replace(device=device)}
    with Timeline.create(folder, **given) as timeline:
        made = timeline.show(0)
        digests = [timeline.apply(placed(i), gate=lenient).weights_digest for i in (0, 1)]
        timeline.rollback(1)
        answers = [str(timeline.at(1).ask(question)) for question in QUESTIONS]
        digests.append(timeline.apply(placed(2), gate=lenient).weights_digest)
        digests.append(timeline.reconsolidate(guard=False).weights_digest)
        loaded, overlay = timeline.bench().loaded, timeline.overlay(timeline.head)
        export("transformers", loaded, overlay, folder.with_suffix(".out"))
        written = (folder.with_suffix(".out") / "model.safetensors").read_bytes()
        return {
            "fixed": made.fixed, "digests": digests, "answers": answers, "written": written, "state": state_of(timeline)
        }  # fmt: skip


def test_a_store_over_cpu_and_disk_is_that_of_the_cpu(
    tmp_path: Path, options: Callable[[Row], Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(Row("gradient", "joint"))
    found = []
    for name, device in (("whole", "cpu"), ("parted", device_map(tmp_path, (0, 1, 2, 3)))):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{name}"))  # both measure their text
        found.append(lived(tmp_path / name, device, given))
    assert found[0] == found[1]
    with Timeline.open(tmp_path / "parted") as timeline:  # the map is the store's
        assert any(p.device.type == "meta" for p in timeline.bench().loaded.model.parameters())
    with Timeline.open(tmp_path / "parted", device="cpu") as timeline:
        assert all(p.device.type == "cpu" for p in timeline.bench().loaded.model.parameters())


def test_atlas_over_cpu_and_disk_shows_the_same_keys_and_gradients(tmp_path: Path) -> None:
    modules = [f"transformer.h.{i}.mlp.c_proj" for i in (2, 3, 4)]
    whole, parted = (load_model("atlas", modules=modules, device=d) for d in ("cpu", device_map(tmp_path, (2, 3, 4))))
    assert whole.fingerprint == parted.fingerprint
    found = [trace(model, fact_rows(model, batch(0), 1), 4) for model in (whole, parted)]
    for name in modules:
        assert torch.equal(found[0].keys[name], found[1].keys[name])
        assert torch.equal(found[0].gradients[name], found[1].gradients[name])


def test_a_store_whose_map_has_an_edited_matrix_on_the_disk_is_not_made(
    tmp_path: Path, options: Callable[[Row], Options]
) -> None:
    given = options(Row("gradient", "joint"))
    given["settings"] = given["settings"].replace(device=device_map(tmp_path, (0, 1, 2)))
    with pytest.raises(UsageError, match=r"transformer\.h\.3\.mlp\.c_proj, which is edited, on the disk"):
        Timeline.create(tmp_path / "store", **given)
    assert not (tmp_path / "store").exists()


# -- over two cards


def on_cards(*arguments: Any, **options: Any) -> LoadedModel:
    """A GPT-2 whose upper half is on the second of two cards."""
    loaded = load_model(*arguments, **options)

    def place(name: str) -> torch.device:
        upper = name.startswith(("transformer.h.2", "transformer.h.3", "transformer.ln_f"))
        return SECOND if upper else FIRST

    spread_over(loaded.model, place)
    found = LoadedModel(
        loaded.model, loaded.tokenizer, loaded.family, loaded.modules, loaded.source, loaded.dtype, FIRST,
        loaded.fingerprint,
    )  # fmt: skip
    with Cards():
        found.__post_init__()
    return found


@contextmanager
def two_cards() -> Iterator[None]:
    """Within the context stores have their models on two cards."""
    with pytest.MonkeyPatch.context() as patch, Cards():
        patch.setattr(timeline_model, "load_model", on_cards)
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
        yield


@pytest.mark.parametrize(("row", "way"), ROWS, ids=str)
def test_a_rule_on_two_cards_finds_what_it_finds_on_one_device(
    row: Row, way: str, tmp_path: Path, options: Callable[[Row], Options], kept: Kept
) -> None:
    def seen(timeline: Timeline) -> list[Any]:
        return [state_of(timeline), timeline.show(0).fixed, *(str(timeline.at(1).ask(q)) for q in QUESTIONS[:2])]

    with two_cards(), Timeline.create(tmp_path / "store", **options(row)) as timeline:
        _WAYS[way][1](timeline, row)
        found = seen(timeline)
    with Timeline.open(kept(row, way)) as timeline:
        assert found == seen(timeline)


def test_cards_tell_where_a_matrix_is_looked_for_where_inputs_are(
    tmp_path: Path, options: Callable[[Row], Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all rules did before models were spread."""
    monkeypatch.setattr(LoadedModel, "device_of", lambda loaded, name: loaded.device)
    with pytest.raises(WrongDevice), two_cards(), Timeline.create(tmp_path / "store", **options(Row("ft"))) as timeline:
        timeline.apply(placed(0), gate=lenient)


def test_the_cpu_solves_where_it_is_told_to(tmp_path: Path, options: Callable[[Row], Options]) -> None:
    given, top = options(Row("gradient", "joint")), "transformer.h.3.mlp.c_proj"
    given["settings"] = given["settings"].replace(solve_device="cpu")
    with two_cards(), Timeline.create(tmp_path / "cards", **given) as timeline:
        found = timeline.apply(placed(0), gate=lenient).weights_digest
        bench = timeline.bench()
        assert bench.loaded.device_of(top) == SECOND
        traced = trace(bench.loaded, fact_rows(bench.loaded, batch(0), 1), 4)
        held = (bench.scale[top], bench.text_gram[top], traced.keys[top], traced.gradients[top], traced.row[top])
        assert {tensor.device for tensor in held} == {torch.device("cpu")}
    with Timeline.create(tmp_path / "plain", **given) as timeline:
        assert timeline.apply(placed(0), gate=lenient).weights_digest == found


def test_several_processes_do_not_share_cards_that_one_model_fills() -> None:
    model = SimpleNamespace(_hf_hook=None, hf_device_map={"model": 0, "lm_head": 1})
    several: Any = SimpleNamespace(model=model, world=ALONE)
    two: Any = SimpleNamespace(size=2, passes_in_step=False)
    with pytest.raises(UsageError, match="2 processes and a model that is spread over 2 accelerators"):
        timeline_model.share(several, Row("ft").settings(), two)
    model.hf_device_map["lm_head"] = "disk"
    timeline_model.share(several, Row("ft").settings(), two)


# -- the cards themselves


def test_cards_are_as_strict_as_torch() -> None:
    with Cards():
        one, two = torch.ones(2, 3, device=FIRST), torch.ones(2, 3).to(SECOND)
        assert (one.device, two.device, one.T.device, (two * 2).sum().device) == (FIRST, SECOND, FIRST, SECOND)
        assert one.to(two).device == one.new_zeros(1, device=SECOND).device == SECOND
        assert one.cpu().device == torch.zeros(1).device == torch.device("cpu")
        weight = torch.nn.Parameter(torch.ones(2))
        put(weight, SECOND)
        (two[:, 0] * weight).sum().backward()
        assert weight.grad is not None and weight.grad.device == SECOND
        assert (one + torch.tensor(1.0)).device == one[torch.tensor([0])].device == FIRST
        for wrong in (
            lambda: one + two,
            lambda: torch.cat([one, torch.ones(2, 3)]),
            lambda: torch.ones(2, 3)[one > 0],
            lambda: one.index_add_(0, torch.tensor([0, 1]), one),
            lambda: one @ two.T,
        ):
            with pytest.raises(WrongDevice):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            one.numpy()
