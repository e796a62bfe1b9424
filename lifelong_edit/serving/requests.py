"""What a request may say of how an answer is made: the numbers of OpenAI's API, within their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import HTTPException
from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

_Count = Annotated[StrictInt, Field(ge=1)]
_Words = Annotated[StrictStr, Field(min_length=1)]


class _Asked(BaseModel):
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    temperature: Annotated[StrictInt | StrictFloat, Field(ge=0, le=2)] | None = None
    top_p: Annotated[StrictInt | StrictFloat, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[StrictInt | StrictFloat, Field(ge=-2, le=2)] | None = None
    seed: Annotated[StrictInt, Field(ge=0)] | None = None
    stream: StrictBool | None = None
    stop: _Words | Annotated[list[_Words], Field(max_length=4)] | None = None


def require_sound(body: Mapping[str, Any]) -> None:
    """Raise HTTPException (400) for a number of a request that is none, or out of its bounds."""
    try:
        _Asked.model_validate(dict(body))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise HTTPException(400, f"found {name} {body[name]!r}, expected otherwise: {first['msg']}") from None


def stops_of(asked: Any) -> list[str]:
    """The texts at which an answer ends, as a request names them."""
    return [asked] if isinstance(asked, str) else list(asked or ())
