"""`serve`, as clients meet it: OpenAI's own against a server in this process, and Chromium at its page."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from openai import BadRequestError, NotFoundError, OpenAI

from lifelong_edit.models import Question, Turn
from lifelong_edit.serving.app import build
from lifelong_edit.serving.generating import Until
from lifelong_edit.serving.states import States
from lifelong_edit.timeline import Timeline
from tests.cli.conftest import Run, fact_line, refused
from tests.zoo import Zoo

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PROMPT, TURN = "The capital of Vienna 1 is", "What is the capital of Vienna 1?"
CSP = "default-src 'none'; connect-src 'self'"
WATCH = """<img src="hold" alt=""><script>
new MutationObserver(() => by("verdict").textContent && fetch("done")).observe(by("verdict"), {childList: true});
</script>"""
CALM: dict[str, Any] = {"max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def store(zoo: Zoo, run: Run, chat_gpt2: Path, making: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of both forms with a step of three facts, for this module to write to."""
    options = ["--model", str(chat_gpt2), *making[2:], "--system", "Be kind.", "--set", "passes=6"]

    def make(place: Path) -> None:
        assert run("init", "--store", place, *options).exit_code == 0
        with Timeline.open(place) as timeline:
            timeline.apply([json.loads(fact_line(number)) for number in range(3)])

    return zoo.copy("served", options, make, tmp_path_factory.mktemp("served") / "store")


@pytest.fixture(scope="module")
def timeline(store: Path) -> Iterator[Timeline]:
    with Timeline.open(store) as timeline:
        yield timeline


def _watch(app: FastAPI) -> None:
    """Beside the page one that a browser takes for loaded when its answers are there."""
    done = asyncio.Event()

    @app.get("/watched", response_class=HTMLResponse)
    async def watched() -> str:
        page = files("lifelong_edit.serving").joinpath("page.html").read_text(encoding="utf-8")
        assert CSP in page
        return page.replace("img-src data:", "img-src data: 'self'").replace("</body>", f"{WATCH}</body>")

    @app.get("/hold")
    async def hold() -> Response:
        await asyncio.wait_for(done.wait(), 100)
        return Response(status_code=204)

    @app.get("/done")
    async def finished() -> Response:
        done.set()
        return Response(status_code=204)


@pytest.fixture(scope="module")
def place(timeline: Timeline) -> Iterator[str]:
    """The address of a server for two states."""
    app = build(States(timeline, ["head", "base"]))
    _watch(app)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    listening = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture(scope="module")
def client(place: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{place}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def wanted(timeline: Timeline, step: int, question: Question, tokens: int = 6) -> str:
    """What the store says, without marks of turns in the text, which an endpoint leaves out."""
    with timeline.at(step).standing() as loaded:
        (answer,) = timeline.bench().task.answer(loaded, [question], tokens)
        return str(loaded.tokenizer.decode(list(answer.ids), skip_special_tokens=True))


def whole(text: str) -> str:
    """Without the torn letter at the end, which a stream holds back: a model of random weights ends with one."""
    return text.rstrip("\ufffd")


def sent(place: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """What the server says to a request that no client of good manners makes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{place}/v1/completions", data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else {"text": text.decode()}


def test_states_are_models_that_answer_as_ask_does(client: OpenAI, timeline: Timeline) -> None:
    assert [model.id for model in client.models.list()] == ["head", "base"]
    for name, step in (("head", timeline.head), ("base", 0)):
        told = client.completions.create(model=name, prompt=PROMPT, **CALM)
        assert (told.model, told.choices[0].text) == (f"{name}@{step}", wanted(timeline, step, PROMPT))
        parts = list(client.completions.create(model=name, prompt=PROMPT, stream=True, **CALM))
        assert whole("".join(part.choices[0].text for part in parts)) == whole(told.choices[0].text)
        turn: Any = [{"role": "user", "content": TURN}]
        said = client.chat.completions.create(model=name, messages=turn, **CALM)
        expected = wanted(timeline, step, Turn(TURN, "Be kind."))  # after the system prompt of the store
        assert (said.model, said.choices[0].message.content) == (f"{name}@{step}", expected)
        pieces = list(client.chat.completions.create(model=name, messages=turn, stream=True, **CALM))
        assert whole("".join(piece.choices[0].delta.content or "" for piece in pieces)) == whole(expected)


def test_a_stream_ends_as_clients_wait_for_it(place: str) -> None:
    body = json.dumps({"model": "head", "prompt": PROMPT, "stream": True, **CALM}).encode()
    request = urllib.request.Request(f"{place}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        assert response.read().endswith(b"data: [DONE]\n\n")


def test_the_head_moves_on_under_requests_and_none_is_lost(client: OpenAI, timeline: Timeline) -> None:
    found: list[tuple[str, str]] = []

    def asking() -> None:
        for _ in range(6):
            told = client.completions.create(model="head", prompt=PROMPT, **CALM)
            found.append((told.model, told.choices[0].text))

    before = timeline.head
    threads = [threading.Thread(target=asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    timeline.rollback(0)
    timeline.rollback(before)
    for thread in threads:
        thread.join()
    right = {f"head@{step}": wanted(timeline, step, PROMPT) for step in (0, before)}
    assert len(found) == 18 and all(text == right[model] for model, text in found)
    timeline.rollback(0)
    assert client.completions.create(model="head", prompt=PROMPT, **CALM).model == "head@0"
    timeline.rollback(before)


def test_a_temperature_draws(client: OpenAI) -> None:
    said = {client.completions.create(model="base", prompt=PROMPT, max_tokens=8, temperature=2, seed=i).choices[0].text
            for i in range(4)}  # fmt: skip
    assert len(said) > 1


def test_an_answer_ends_before_a_stop(client: OpenAI, place: str) -> None:
    whole_answer = client.completions.create(model="head", prompt=PROMPT, max_tokens=8, temperature=0).choices[0].text
    stop = whole_answer[3:5]
    expected = whole_answer[: whole_answer.index(stop)]
    asked: dict[str, Any] = {"model": "head", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    for stops in (stop, [stop, "nowhere"]):
        assert client.completions.create(**asked, stop=stops).choices[0].text == expected
        parts = client.completions.create(**asked, stop=stops, stream=True)
        assert "".join(part.choices[0].text for part in parts) == expected
    turn: Any = [{"role": "user", "content": TURN}]
    calm: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    said = client.chat.completions.create(model="head", messages=turn, **calm).choices[0].message.content or ""
    cut = client.chat.completions.create(model="head", messages=turn, stop=said[2:4], **calm).choices[0].message.content
    assert (cut or "") == said[: said.index(said[2:4])]


def test_what_may_begin_a_stop_waits_for_what_follows() -> None:
    pieces = Until(["END", "x"])
    for item in ("one E", "N", "d two", " EN", "D three", " four", None):
        pieces.put_nowait(item)
    assert [pieces.get_nowait() for _ in range(pieces.qsize())] == ["one", " ", "ENd t", "wo ", None]


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", -1), ("max_tokens", 0), ("max_tokens", "a"), ("temperature", "hot"), ("temperature", -1),
     ("top_p", 5), ("stream", "yes"), ("stop", ""), ("stop", [1]), ("seed", "x")],
)  # fmt: skip
def test_a_number_out_of_its_bounds_is_refused(place: str, name: str, value: Any) -> None:
    status, told = sent(place, {"prompt": PROMPT, **CALM, name: value})
    assert status == 400 and f"found {name} {value!r}, expected otherwise" in told["error"]["message"]


def test_what_it_cannot_do_is_refused_in_a_sentence(client: OpenAI, place: str) -> None:
    with pytest.raises(NotFoundError, match="expected head or base"):
        client.completions.create(model="nobody", prompt=PROMPT)
    with pytest.raises(BadRequestError, match="leaves no room"):
        client.completions.create(model="head", prompt="Vienna " * 500)
    with pytest.raises(BadRequestError, match="found n,"):
        client.completions.create(model="head", prompt=PROMPT, n=2)
    with pytest.raises(BadRequestError, match="found no messages"):
        client.chat.completions.create(model="head", messages=[])
    assert client.completions.create(model="head", prompt=PROMPT, user="me", n=1, **CALM).choices
    assert sent(place, b"{torn")[0] == 400 and "JSON" in sent(place, b"{torn")[1]["error"]["message"]
    for prompt, message in ((["a", "b"], "a prompt that is a list"), ("", "an empty prompt"), (None, "is missing")):
        status, told = sent(place, {"prompt": prompt})
        assert status == 400 and message in told["error"]["message"]
    with pytest.raises(urllib.error.HTTPError) as missing:
        urllib.request.urlopen(f"{place}/nowhere")
    assert missing.value.code == 404 and "message" in json.load(missing.value)["error"]
    for headers in ({"Content-Type": "text/plain"}, {"Host": "evil.example"}):
        assert sent(place, {"prompt": PROMPT, **CALM}, **headers)[0] == 400, headers


def test_a_command_that_cannot_serve_says_so_before_it_loads(run: Run, store: Path, no_model: None) -> None:
    refused(run("serve", "--store", store.parent / "nowhere"), 4, "there is no store")
    result = run("serve", "--store", store, "--at", "nowhere")
    assert result.exit_code == 2 and "names no step" in result.stderr and "loading" not in result.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(run("serve", "--store", store, "--port", port), 2, f"port {port} taken", "--port")


def test_a_missing_package_is_named(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifelong_edit.cli.serving._NEEDED", ("fastapi", "no_such.package"))
    refused(run("serve", "--store", store), 1, "no_such.package", "lifelong-edit[serve]")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_the_page_asks_two_states_side_by_side(place: str, timeline: Timeline, tmp_path: Path) -> None:
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path}")
    logged = ("--enable-logging=stderr", "--v=0", "--disable-background-networking", "--disable-component-update")
    command = [str(CHROMIUM), *quiet, *logged, "--dump-dom", f"{place}/watched?q={urllib.parse.quote(TURN)}"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in found.stderr, found.stderr
    said = re.findall(r"<article><h2>(.*?)</h2><p>(.*?)</p></article>", found.stdout, re.DOTALL)
    states = (("head", timeline.history().state_of(timeline.head)), ("base", 0))
    right = [(f"{name}@{step}", wanted(timeline, step, Turn(TURN, "Be kind."), 40)) for name, step in states]
    assert [name for name, _ in said] == [name for name, _ in right], found.stdout[-2000:]
    shown = [html.unescape(text).strip()[:10] for _, text in said]
    assert all(shown) and shown == [text.strip()[:10] for _, text in right]
    assert "Two answers." in found.stdout or "The same answer." in found.stdout
