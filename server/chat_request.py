"""The body of a request → as much of it as routing needs, or all of it in a type.

In: bytes. Out: the model and whether it streams; or a typed request. Raises `InvalidRequest`, whose
`param` names the field.
"""

import re
from typing import Any, TypeVar

import msgspec

from streaming.failures import InvalidRequest

T = TypeVar("T")


class ModelObject(msgspec.Struct):
    id: str


class RoutedRequest(msgspec.Struct):
    """As much of a request as routing needs."""

    model: str | ModelObject | None = None
    stream: bool | None = None
    n: Any = None

    @property
    def choices(self) -> int:
        """How many choices a reply will have."""
        return self.n if isinstance(self.n, int) and self.n > 0 else 1

    @property
    def model_id(self) -> str | None:
        return self.model.id if isinstance(self.model, ModelObject) else self.model


_route = msgspec.json.Decoder(RoutedRequest)
_FIELD = re.compile(r" - at `\$\.?([^`]*)`$")


def route_of(body: bytes) -> RoutedRequest:
    """Model and stream flag. Raises InvalidRequest for what is no JSON object."""
    return decoded(_route, body)


def json_object(body: bytes) -> dict[str, Any]:
    """The whole body. Raises InvalidRequest for what is no JSON object."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return value


def decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The body in the decoder's type. Raises InvalidRequest, which names the field that is wrong."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _FIELD.search(message)
        where = found[1].replace("[...]", "").replace("[", ".").replace("]", "") if found else None
        if missing := re.search(r"missing required field `(\w+)`", message):
            where = f"{where}.{missing[1]}" if where else missing[1]
        expected = _FIELD.sub("", message)
        said = f"'{where}': {expected}" if where else f"The request body: {expected}"
        raise InvalidRequest(f"{said}.", param=where) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.") from None
