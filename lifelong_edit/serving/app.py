"""An OpenAI-compatible endpoint for states of a store, by transformers' own handlers, and a page that asks two of them.

What is ours is which state a request is answered from. Requests are read, tokens made and answers and streams written
by `transformers serve`'s handlers (chat completions and completions).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import BaseGenerateManager, GenerationState, Modality

from lifelong_edit.errors import LifelongEditError
from lifelong_edit.serving.generating import Generating
from lifelong_edit.serving.requests import require_sound
from lifelong_edit.serving.states import Served, StateModel, States, require_room

# What tools send by habit, and what it may say where nothing else is meant by it than what is done anyway.
_ANY = ("user", "metadata", "store", "service_tier", "stream_options", "parallel_tool_calls")
_HARMLESS: dict[str, Any] = {
    **dict.fromkeys(_ANY),
    "n": 1,
    "best_of": 1,
    "presence_penalty": 0,
    "logprobs": False,
    "echo": False,
    "top_logprobs": 0,
    "tool_choice": "auto",
    "reasoning_effort": "none",
    "response_format": {"type": "text"},
    "logit_bias": {},
}


class _Manager:
    """As transformers' handlers ask one: models by name, which here are states of one model."""

    force_model = None

    def __init__(self, states: States, *, chat: bool) -> None:
        self._states, self._chat = states, chat

    def process_model_name(self, model_id: str) -> str:
        """The name as it is."""
        return model_id

    def load_model_and_processor(self, model_id: str, gguf_file: str | None = None) -> tuple[Any, Any]:
        """The model at the state that a pinned name says, and the tokenizer."""
        name, _, step = model_id.rpartition("@")
        return StateModel(self._states, Served(name, int(step)), chat=self._chat), _Tokenizer(self._states)

    def get_model_modality(self, model: Any, processor: Any = None) -> Modality:
        """Text."""
        return Modality.LLM


class _Tokenizer:
    """The tokenizer, which refuses what leaves no room for an answer before anything waits for it."""

    def __init__(self, states: States) -> None:
        self._states = states

    def __getattr__(self, name: str) -> Any:
        return getattr(self._states.loaded.tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        """Tokens of a text, with what the tokenizer puts in front."""
        return self._checked(self._states.loaded.tokenizer(text, verbose=False, **options))

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        """Tokens of a conversation. Raises HTTPException where the template refuses it."""
        options.pop("load_audio_from_video", None)
        try:
            found = self._states.loaded.tokenizer.apply_chat_template(messages, **options)
        except (ValueError, TypeError, KeyError) as error:
            raise HTTPException(400, f"the model's chat template refuses the conversation: {error}") from error
        except Exception as error:  # jinja2's own, which is what a template raises by itself
            if type(error).__module__.partition(".")[0] != "jinja2":
                raise
            raise HTTPException(400, f"the model's chat template refuses the conversation: {error}") from error
        return self._checked(found)

    def _checked(self, inputs: Any) -> Any:
        require_room(self._states, inputs["input_ids"])
        return inputs


class _OneByOne(GenerationState):  # type: ignore[misc]
    """One thread for all states, since they share a model."""

    def __init__(self) -> None:
        super().__init__()
        self._one = Generating()

    def get_manager(self, model_id: str, use_cb: bool = False) -> BaseGenerateManager:
        """The one."""
        return self._one


def _as_asked(config: Any, body: dict[str, Any]) -> Any:
    """A temperature says whether to draw at all; without one the model's own settings hold."""
    if body.get("temperature") is not None:
        config.do_sample = float(body["temperature"]) > 0
    if not config.do_sample:
        config.temperature = config.top_p = config.top_k = None
    return config


class _Chat(ChatCompletionHandler):  # type: ignore[misc]
    def _build_generation_config(self, body: dict[str, Any], model_generation_config: Any, use_cb: bool = False) -> Any:
        return _as_asked(super()._build_generation_config(body, model_generation_config, use_cb), body)


class _Completion(CompletionHandler):  # type: ignore[misc]
    def _build_generation_config(self, body: dict[str, Any], model_generation_config: Any, use_cb: bool = False) -> Any:
        return _as_asked(super()._build_generation_config(body, model_generation_config, use_cb), body)


def build(states: States) -> FastAPI:
    """The application: `/v1/models`, `/v1/completions`, `/v1/chat/completions`, `/health`, and the page at `/`.

    An answer's `model` says from which state it is, as `head@12`. A state is chosen when a request comes, and held
    until its answer is through, whatever is committed meanwhile.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)  # its handlers warn of every request

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        states.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    # A page of the web that calls its own name 127.0.0.1 is none of ours.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "testserver"])
    generation = _OneByOne()
    chat = _Chat(_Manager(states, chat=True), generation, chat_template_kwargs={"enable_thinking": False})
    completion = _Completion(_Manager(states, chat=False), generation)
    _tell_errors(app)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return files("lifelong_edit.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        found = [states.named(name) for name in states.names]
        data = [
            {"id": f.name, "object": "model", "created": 0, "owned_by": f.model, "chat": states.chat} for f in found
        ]
        return {"object": "list", "data": data}

    @app.post("/v1/completions")
    async def completions(body: dict[str, Any]) -> Response:
        served = states.named(body.get("model"))
        prompt = body.get("prompt")
        if not isinstance(prompt, str):
            raise HTTPException(400, f"found a prompt that is {_kind(prompt)}, expected a text; one prompt a request")
        if not prompt:
            raise HTTPException(400, "found an empty prompt, expected a text")
        read = await asyncio.to_thread(states.put, served, prompt)
        return await _answered(completion, {**body, "prompt": read}, served)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: dict[str, Any]) -> Response:
        served = states.named(body.get("model"))
        if not states.chat:
            raise HTTPException(400, "found a model without a chat template, expected a prompt at /v1/completions")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise HTTPException(400, "found no messages, expected a list with the turns of a conversation")
        read = await asyncio.to_thread(states.put_turn, served, messages)
        return await _answered(chat, {**body, "messages": read}, served)

    return app


def _kind(found: Any) -> str:
    """What JSON calls a value."""
    kinds: dict[type, str] = {type(None): "missing", list: "a list", dict: "an object", bool: "a truth value"}
    return kinds.get(type(found), "a number")


async def _answered(handler: Any, body: dict[str, Any], served: Served) -> Response:
    """What transformers' handler answers, of the state that a request came for."""
    require_sound(body)
    given = {**_meant(body), "model": served.model}
    response: Response = await handler.handle_request(given, f"lifelong-{uuid4().hex}")
    if isinstance(response, StreamingResponse):
        response.body_iterator = _ended(response.body_iterator)
    return response


def _meant(body: dict[str, Any]) -> dict[str, Any]:
    """A request without what says nothing here. Raises HTTPException for what would be ignored."""
    for name, usual in _HARMLESS.items():
        if name in body and name not in _ANY and body[name] not in (None, usual, False, 0):
            raise HTTPException(400, f"found {name}, which this server does not know, expected a request without it")
    return {name: value for name, value in body.items() if name not in _HARMLESS and value is not None}


async def _ended(parts: Any) -> AsyncIterator[Any]:
    """A stream of events with the end that clients wait for."""
    async for part in parts:
        yield part
    yield "data: [DONE]\n\n"


def _tell_errors(app: FastAPI) -> None:
    """Errors in the shape that OpenAI's clients read."""

    def told(status: int, message: str) -> JSONResponse:
        kind = "invalid_request_error" if status < 500 else "server_error"
        return JSONResponse({"error": {"message": message, "type": kind, "code": None, "param": None}}, status)

    @app.exception_handler(AnyHTTPException)
    async def http(_: Request, error: AnyHTTPException) -> JSONResponse:
        return told(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return told(400, "found a request whose body is no JSON object, expected one as application/json")

    @app.exception_handler(LifelongEditError)
    async def ours(_: Request, error: LifelongEditError) -> JSONResponse:
        return told({2: 404, 3: 400}.get(error.exit_code, 500), str(error))

    @app.exception_handler(json.JSONDecodeError)
    async def torn(_: Request, error: json.JSONDecodeError) -> JSONResponse:
        return told(400, f"found JSON that cannot be read: {error}")
