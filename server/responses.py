"""`POST /v1/responses`: the endpoint. Reads whose model is asked for and hands the request there.

In: a request. Out: an agent's run as a response, streamed or whole, kept or not, now or in the background; or an upstream's
reply. A failure before the first byte is a status; after it, `response.failed`.
"""

import asyncio
from functools import partial

import msgspec
from aiohttp import web

from server.agent_request import run_spec_of
from server.auth import allow_work
from server.chat import agent_for
from server.chat_limits import check_limits
from server.chat_request import decoded, route_of
from server.conversation import image_urls_of
from server.errors import error_response
from server.idempotency import Leg, wish_of
from server.joining import ReplyElsewhere
from server.keys import (
    AGENTS,
    API_KEY,
    IDENTITY,
    IMAGE_FETCH,
    OUTCOME,
    PRESENCE,
    REPLAYS,
    RESPONSES,
    RUN_ID,
    SETTINGS,
    STORE,
    STREAMS,
    SUPERVISOR,
    UPSTREAMS,
)
from server.response_context import Context, context_of
from server.response_input import ReadInput, chat_of, items_of, renamed
from server.response_keeper import ResponseKeeper
from server.response_limits import check_response_limits
from server.response_schema import ResponseRequest
from server.response_stream import collect_told, stream_kept, stream_told
from server.response_telling import ResponseTelling, ResponseTerms, terms_of
from server.responses_upstream import send_response
from server.run_legs import leave_seconds, leg_for
from server.tool_request import tool_results_of, tools_of
from streaming.failures import InvalidRequest, UnsupportedMedia
from streaming.json_codec import encode_json
from streaming.run_spec import RunSpec

_request = msgspec.json.Decoder(ResponseRequest)


async def create_response(request: web.Request) -> web.StreamResponse:
    """The handler. Raises leaves of SmolgateError, which the middleware answers."""
    if request.content_type not in {"application/json", "application/octet-stream", "text/plain"}:
        raise UnsupportedMedia("The request body must be application/json.")
    body = await request.read()
    routed = route_of(body)
    model = routed.model_id
    agents, upstreams = request.app[AGENTS], request.app[UPSTREAMS]
    model = model or request.headers.get("X-Model")
    route = upstreams.exact(model)
    if route is None and model not in agents:
        route = upstreams.by_prefix(model)
    if route is not None:
        allow_work(request, route.model)
        return await send_response(request, body, routed, route)
    agent = agent_for(model, agents, request.app[SETTINGS])
    allow_work(request, agent)
    asked = decoded(_request, body)
    check_response_limits(asked)
    return await _run_agent(request, body, asked, agent, model or agent)


def response_id_of(leg: Leg) -> str:
    """The response's id, of one leg of a run."""
    stem = leg.run.id.partition("-")[2]
    return f"resp_{stem}-{leg.begin}" if leg.begin else f"resp_{stem}"


async def _run_agent(
    request: web.Request, body: bytes, asked: ResponseRequest, agent: str, model: str
) -> web.StreamResponse:
    app, owner = request.app, request.get(API_KEY, "")
    is_kept = asked.store is not False
    seconds = leave_seconds(request)
    if is_kept:  # before anything is begun, find out whether it can be stored
        await app[PRESENCE].arrive()
    context = await context_of(app[STORE], owner, asked, most_bytes=app[SETTINGS].max_body_bytes)
    items = items_of(asked.input, stem=app[IDENTITY].new_id()[-28:], known=context.known)
    read = _read(asked, context, items)
    try:
        results = tool_results_of(read.chat.messages)
    except InvalidRequest as error:
        raise renamed(error, read) from None
    replays = app[REPLAYS]
    wish = wish_of(request.headers, body, owner)
    async with replays.settling(wish):
        try:
            leg = replays.joinable(wish) or await leg_for(
                request,
                body,
                wish,
                results,
                partial(_spec_of, request, read, context, agent, is_kept=is_kept),
            )
        except InvalidRequest as error:
            raise renamed(error, read) from None
        if isinstance(leg, Leg):
            replays.keep(wish, leg)
    if isinstance(leg, ReplyElsewhere):
        return await leg.pass_on(request)
    request[RUN_ID] = leg.run.id
    terms = terms_of(
        asked, response_id=response_id_of(leg), created=int(leg.run.created), model=model
    )
    if is_kept:
        return await _keep(request, leg, asked, terms, items, context, seconds)
    telling = ResponseTelling(
        terms,
        leg.run,
        begin=leg.begin,
        tag_names=app[SETTINGS].think_tags,
        now=app[IDENTITY].now,
    )
    reading = app[SUPERVISOR].reading(leg.run, begin=leg.begin, leave_seconds=seconds)
    async with reading as reader:
        if asked.stream:
            return await stream_told(request, leg.run, reader, telling)
        return await collect_told(request, leg.run, reader, telling, None)


async def _keep(
    request: web.Request,
    leg: Leg,
    asked: ResponseRequest,
    terms: ResponseTerms,
    items: list[dict[str, object]],
    context: Context,
    seconds: float,
) -> web.StreamResponse:
    """The leg as a kept response; a repeated request reads what the first one keeps."""
    app, owner = request.app, request.get(API_KEY, "")
    keeper = app[RESPONSES].get(terms.id)
    if keeper is None:
        # A run that has begun already may have been read before.
        is_new = leg.run.started is None
        record = await app[STORE].get(terms.id, owner) if not is_new else None
        if record is not None:  # it has ended
            if asked.stream:
                return await stream_kept(request, terms.id, owner, 0)
            return web.Response(body=record.body, content_type="application/json")
        keeper = app[RESPONSES].get(terms.id)  # a repeated request may have been quicker
    if keeper is None:
        keeper = _start_keeper(app, ResponseKeeper(app, leg, owner, terms, items, context.mark))
    if asked.background:
        await keeper.stored.wait()
        if keeper.refusal is not None:
            raise keeper.refusal
        if asked.stream:
            return await stream_kept(request, terms.id, owner, 0)
        return web.Response(body=keeper.record.body, content_type="application/json")
    async with keeper.followed(seconds) as reader:
        if not asked.stream:
            return await collect_told(request, leg.run, reader, keeper.telling, keeper)
        return await _stream(request, keeper, owner)


async def _stream(request: web.Request, keeper: ResponseKeeper, owner: str) -> web.StreamResponse:
    waiting = asyncio.ensure_future(keeper.told.wait())
    try:
        await asyncio.wait([waiting], timeout=request.app[SETTINGS].heartbeat_seconds)
    finally:
        waiting.cancel()
    await keeper.stored.wait()
    if keeper.refusal is not None:
        raise keeper.refusal
    telling = keeper.telling
    failure = telling.transcript.failure
    if failure is not None and not telling.told:
        request[OUTCOME] = failure.code or "agent_failed"
        return error_response(failure, work_begun=keeper.work_begun)
    response = await stream_kept(request, keeper.record.id, owner, 0)
    if OUTCOME not in request:
        request[OUTCOME] = keeper.outcome
    return response


async def _spec_of(
    request: web.Request, read: ReadInput, context: Context, agent: str, *, is_kept: bool
) -> RunSpec:
    fetch = request.app.get(IMAGE_FETCH)
    messages = read.chat.messages
    fetched = await fetch.fetch_all(image_urls_of(messages)) if fetch is not None else {}
    spec = run_spec_of(
        read.chat,
        run_id=request.app[IDENTITY].new_id(),
        agent=agent,
        tag_names=request.app[SETTINGS].think_tags,
        fetched=fetched,
    )
    return msgspec.structs.replace(spec, memory=context.memory, keeps_memory=is_kept)


def _read(asked: ResponseRequest, context: Context, items: list[dict[str, object]]) -> ReadInput:
    if not items and not context.items:
        raise InvalidRequest("'input' must be a text or a list of items.", param="input")
    read = chat_of(asked, context.items, items)
    try:
        check_limits(read.chat)
        tools_of(read.chat)
    except InvalidRequest as error:
        raise renamed(error, read) from None
    return read


def _start_keeper(app: web.Application, keeper: ResponseKeeper) -> ResponseKeeper:
    keepers, response_id = app[RESPONSES], keeper.record.id
    keepers[response_id] = keeper
    task = asyncio.get_running_loop().create_task(keeper.keep())
    app[STREAMS].add(task)

    def ended(task: asyncio.Task[None]) -> None:
        app[STREAMS].discard(task)
        keepers.pop(response_id, None)

    task.add_done_callback(ended)
    return keeper


def json_response(value: object) -> web.Response:
    """An object as a whole response."""
    return web.Response(body=encode_json(value), content_type="application/json")
