"""A whole JSON reply in, the same without think tags out.

Of each choice the message's content, reasoning fields and refusal are read, or a legacy
completion's text. Everything else goes on as it came, and so does what is no such reply: an
error body, a null message.
"""

from collections.abc import Sequence
from typing import Any

from sanitize.content import ContentScrubber, has_text
from sanitize.deltas import REASONING_FIELDS
from sanitize.think import DEFAULT_TAG_NAMES, Mode, scrub

Json = dict[str, Any]


def scrub_reply(
    reply: Json,
    mode: Mode = "tags",
    tag_names: Sequence[str] = DEFAULT_TAG_NAMES,
    starts_open: bool = False,
) -> Json:
    """Return a scrubbed copy of a chat.completion or text_completion; `reply` is not changed.

    Parameters and errors are ThinkScrubber's; as in a stream, `mode` and `starts_open` are for
    content alone. In mode `reasoning` the moved text is put after the reasoning that is there,
    in both reasoning fields. What is no such reply comes back as it is.
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list):
        return reply

    def read_choice(choice: Any) -> Any:
        if not isinstance(choice, dict):
            return choice
        message = choice.get("message")
        if isinstance(message, dict):
            scrubber = ContentScrubber(mode, tag_names, starts_open)
            return {**choice, "message": _scrub_fields(message, "content", scrubber, tag_names)}
        scrubber = ContentScrubber(mode, tag_names, starts_open)
        return _scrub_fields(choice, "text", scrubber, tag_names)

    return {**reply, "choices": [read_choice(choice) for choice in choices]}


def _scrub_fields(
    item: Json, content_field: str, scrubber: ContentScrubber, tag_names: Sequence[str]
) -> Json:
    read = {
        field: scrub(item[field], "tags", tag_names)
        for field in (*REASONING_FIELDS, "refusal")
        if isinstance(item.get(field), str)
    }
    content = item.get(content_field)
    if not has_text(content):
        return {**item, **read}
    visible: Any = [] if isinstance(content, list) else ""
    moved = ""
    for value, is_reasoning in scrubber.feed(content, ends=True):
        if is_reasoning:
            moved += str(value)
        else:
            visible += value
    read[content_field] = visible
    if moved:
        given = next(filter(None, map(read.get, REASONING_FIELDS)), "")
        read |= {field: (read.get(field) or given) + moved for field in REASONING_FIELDS}
    return {**item, **read}
