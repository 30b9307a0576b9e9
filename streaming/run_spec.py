"""One run, asked for in plain values: what flows from the server to a worker, wherever that lives."""

from typing import Literal

import msgspec


class Image(msgspec.Struct, frozen=True):
    """An encoded picture: its media type (`image/png`) and its bytes."""

    media_type: str
    data: bytes


class Turn(msgspec.Struct, frozen=True):
    """An earlier turn of the conversation, reasoning already stripped."""

    role: Literal["user", "assistant"]
    text: str
    images: tuple[Image, ...] = ()


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one run is to do. `model_options` go into the body of every model call."""

    run_id: str
    agent: str
    task: str
    images: tuple[Image, ...] = ()
    history: tuple[Turn, ...] = ()
    max_steps: int | None = None
    model_options: dict[str, object] = msgspec.field(default_factory=dict)
