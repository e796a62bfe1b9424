"""Tokens made by transformers' own manager, one request after the other, and answers that end before a stop."""

from __future__ import annotations

import asyncio
from typing import Any

from transformers.cli.serving.utils import DirectStreamer, GenerateManager, _GenerationCancelled, _StreamError

from lifelong_edit.serving.requests import stops_of


class Until(asyncio.Queue[Any]):
    """Pieces of an answer up to the first of some texts; what may be the beginning of one waits for what follows."""

    def __init__(self, stops: list[str]) -> None:
        super().__init__()
        self._stops, self._held, self._through = stops, "", False
        self._room = max(map(len, stops), default=1) - 1

    def put_nowait(self, item: Any) -> None:
        """Take the next piece; None, an error and pieces of other kinds than text end what is held back."""
        if not self._stops:
            super().put_nowait(item)
        elif type(item) is not str:
            self._give(len(self._held))
            super().put_nowait(item)
        elif not self._through:
            self._held += item
            at = first_of(self._stops, self._held)
            self._through = at is not None
            self._give(max(0, len(self._held) - self._room) if at is None else at)
            self._held = "" if self._through else self._held

    def _give(self, count: int) -> None:
        if count:
            super().put_nowait(self._held[:count])
            self._held = self._held[count:]


def first_of(stops: list[str], text: str) -> int | None:
    """Where the first of some texts begins in a text; None where there is none."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)


class Generating(GenerateManager):  # type: ignore[misc]
    """As transformers' manager, without the stop itself in the answer, which OpenAI's API leaves out."""

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str, response_parser: Any = None
    ) -> tuple[asyncio.Queue[Any], DirectStreamer]:
        """A queue of the pieces of an answer, and what fills it."""
        loop = asyncio.get_running_loop()
        queue = Until(stops_of(gen_config.stop_strings))
        streamer = DirectStreamer(processor._tokenizer, loop, queue, response_parser=response_parser)

        def run() -> None:
            end: Any = None
            try:
                model.generate(**inputs, streamer=streamer, generation_config=gen_config)
                return  # the streamer has told the end
            except _GenerationCancelled:
                pass
            except Exception as error:  # whatever it is, whoever waits is told
                end = _StreamError(str(error))
            loop.call_soon_threadsafe(queue.put_nowait, end)

        self.submit(run)
        return queue, streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, Any]:
        """Text, tokens of the prompt, and ids of the answer."""
        text, length, ids = await super().generate_non_streaming(model, processor, inputs, gen_config, request_id)
        return text[: first_of(stops_of(gen_config.stop_strings), text)], length, ids
