"""What an interpreter's variables leave behind, and what they become in another one.

In: the state of smolagents' interpreter after its last code. Out: plain values, encoded; the names that code defined (functions,
classes, imports), which are to be defined again by the code that did; the names of all else, which is lost. Bounded.
"""

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import msgspec

from streaming.interpreters.value_writer import encode_faithfully

MOST_VARIABLES = 1000
MOST_NAME_CHARACTERS = 200
# Of all values together.
MOST_KEPT_BYTES = 4 << 20
# smolagents' own.
_NOT_VARIABLES = frozenset({"_print_outputs", "_operations_count", "final_answer"})


class KeptVariables(msgspec.Struct, array_like=True):
    """`values` are of `value_writer`; `defined` and `lost` are names."""

    values: dict[str, bytes] = {}
    defined: list[str] = []
    lost: list[str] = []


def kept_variables(state: Mapping[str, Any], functions: Iterable[str]) -> KeptVariables:
    """`functions` are the names of those that the code defined."""
    kept = KeptVariables(defined=list(functions)[:MOST_VARIABLES])
    bytes_left = MOST_KEPT_BYTES
    for name, value in list(state.items()):
        if not _is_variable(name):
            continue
        if isinstance(value, ModuleType) or callable(value):
            kept.defined.append(name)
            continue
        encoded = None
        if len(kept.values) < MOST_VARIABLES:
            encoded = encode_faithfully(value, most_bytes=bytes_left)
        if encoded is None:
            kept.lost.append(name)
        else:
            bytes_left -= len(encoded)
            kept.values[name] = encoded
    del kept.lost[MOST_VARIABLES:], kept.defined[MOST_VARIABLES:]
    return kept


def _is_variable(name: str) -> bool:
    if name in _NOT_VARIABLES or (name.startswith("__") and name.endswith("__")):
        return False
    return len(name) <= MOST_NAME_CHARACTERS and name.isidentifier()
