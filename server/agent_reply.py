"""An agent's run → the client: a chat stream, or one completion.

In: the events of one leg of a run, which ends with the run or where that pauses for its client's tools.
Out: role, reasoning as it happens, the answer or the tool calls, the finish, usage if asked for, `[DONE]`. Until the first event there is no response yet, so that a run that fails at
once, or is refused in the queue, is answered with a status; a heartbeat's time of silence opens the
stream all the same.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from aiohttp import web

from server.chat_wire import DONE, TRUNCATED, ChatWire, Tokens, completion, error_event
from server.errors import error_object, error_response, unexpected
from server.keys import OUTCOME, REQUEST_ID, SETTINGS
from server.padded_reply import PaddedReply, reply_whole
from server.run_ids import leg_id
from server.sse_writer import SseWriter
from streaming.events import Event, Failure
from streaming.json_codec import encode_json
from streaming.run import Run, RunReader
from streaming.transcript import Transcript

# A stream carries any amount; one reply that is no stream is held in memory several times over.
MAX_REASONING_CHARACTERS = 1 << 20


async def collect_run(
    request: web.Request,
    run: Run,
    reader: RunReader,
    *,
    created: int,
    model: str,
    reasoning_format: str,
) -> web.StreamResponse:
    """The whole leg of the run as one completion, or as an error that is not to be retried.

    Raises ConnectionError when the client is gone.
    """

    async def answer(padded: PaddedReply) -> bytes | Failure:
        transcript = transcript_of(request.app, run, reader)
        reasoning = _Collected()
        while events := await padded.read():
            for event in events:
                reasoning.add(transcript.feed(event))
        if transcript.failure is not None:
            return transcript.failure
        run_id = leg_id(run.id, reader.begin)
        return _completion_of(
            run_id, transcript, reasoning.text(), created, model, reasoning_format
        )

    return await reply_whole(request, run, reader, answer)


def _completion_of(
    run_id: str,
    transcript: Transcript,
    reasoning: str,
    created: int,
    model: str,
    reasoning_format: str,
) -> bytes:
    reply = completion(
        run_id=run_id,
        created=created,
        model=model,
        reasoning=reasoning,
        answer=transcript.answer or "",
        tool_calls=transcript.tool_calls,
        finish_reason=_finish_reason(transcript),
        reasoning_format=reasoning_format,
        tokens=_tokens(transcript),
    )
    return encode_json(reply)


async def stream_run(
    request: web.Request,
    run: Run,
    reader: RunReader,
    *,
    created: int,
    model: str,
    reasoning_format: str,
    include_usage: bool,
) -> web.StreamResponse:
    """The leg of the run as a chat stream. Raises ConnectionError when the client is gone."""
    settings = request.app[SETTINGS]
    transcript = transcript_of(request.app, run, reader)
    wire = ChatWire(
        run_id=leg_id(run.id, reader.begin),
        created=created,
        model=model,
        include_usage=include_usage,
    )
    told = Telling(wire, reasoning_format)
    with suppress(TimeoutError):
        async with asyncio.timeout(settings.heartbeat_seconds):
            while not told.anything and (events := await reader.read()):
                told.reasoning_of(events, transcript)
    if transcript.failure is not None and not told.anything:
        request[OUTCOME] = run.outcome or "agent_failed"
        return error_response(transcript.failure, work_begun=run.started is not None)
    writer = SseWriter(
        heartbeat_seconds=settings.heartbeat_seconds,
        stall_seconds=settings.stall_seconds,
        headers={"x-request-id": request[REQUEST_ID]},
    )
    await writer.prepare(request)
    async with writer:
        try:
            await writer.send_events(wire.role() + told.take())
            while events := await reader.read():
                told.reasoning_of(events, transcript)
                await writer.send_events(told.take())
            request[OUTCOME] = run.outcome or "ok"
            if transcript.failure is not None:
                told.failure(error_object(transcript.failure))
            else:
                told.end(transcript)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - logged there
            told.failure(error_object(unexpected(request, error)))
        await writer.send_events(told.take())
        await writer.write_eof()
    return writer


class _Collected:
    """Reasoning for a reply that is no stream: all of it up to a limit, then a word that it was cut."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._characters = 0

    def add(self, text: str) -> None:
        if text and self._characters <= MAX_REASONING_CHARACTERS:
            self._pieces.append(text)
            self._characters += len(text)

    def text(self) -> str:
        text = "".join(self._pieces)
        if len(text) <= MAX_REASONING_CHARACTERS:
            return text
        return text[:MAX_REASONING_CHARACTERS] + TRUNCATED


class Telling:
    """Collects the events of a stream, in its `reasoning_format`, until they are taken and sent."""

    def __init__(self, wire: ChatWire, reasoning_format: str) -> None:
        self._wire = wire
        self._in_tags = reasoning_format == "think_tags"
        self._silent = reasoning_format == "none"
        self._think_open = False
        self._events: list[bytes] = []
        self.anything = False

    def reasoning_of(self, events: Iterable[Event], transcript: Transcript) -> None:
        text = "".join(map(transcript.feed, events))
        if not text:
            return
        self.anything = True
        if self._silent:
            return
        if self._in_tags:
            text = text if self._think_open else "<think>\n" + text
            self._think_open = True
            self._events += self._wire.content(text)
        else:
            self._events += self._wire.reasoning(text)

    def end(self, transcript: Transcript) -> None:
        finish = self._wire.finish(_finish_reason(transcript))
        last = (finish, self._wire.usage(_tokens(transcript)), DONE)
        self._close_think()
        if transcript.tool_calls:
            self._events += self._wire.tool_calls(transcript.tool_calls)
        else:
            self._events += self._wire.content(transcript.answer or "")
        self._events += last

    def failure(self, error: dict[str, object]) -> None:
        self._close_think()
        self._events += (self._wire.finish("error"), error_event(error), DONE)

    def take(self) -> bytes:
        events, self._events = self._events, []
        return b"".join(events)

    def take_events(self) -> list[bytes]:
        events, self._events = self._events, []
        return [event for event in events if event]

    def _close_think(self) -> None:
        if self._think_open:
            self._think_open = False
            self._events += self._wire.content("\n</think>\n\n")


def transcript_of(app: web.Application, run: Run, reader: RunReader) -> Transcript:
    return Transcript(
        tag_names=app[SETTINGS].think_tags,
        code_tags=run.code_tags,
        is_later_leg=reader.begin > 0,
    )


def _finish_reason(transcript: Transcript) -> str:
    if transcript.tool_calls:
        return "tool_calls"
    return "length" if transcript.answer_is_cut else "stop"


def _tokens(transcript: Transcript) -> Tokens:
    return Tokens(
        transcript.prompt_tokens, transcript.completion_tokens, transcript.reasoning_tokens
    )
