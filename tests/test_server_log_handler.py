"""Lines are written in order, together where they can wait, and at once where they cannot."""

import asyncio
import errno
import io
import logging
import threading
from collections.abc import Iterator

import pytest
from conftest import until

from server.log_formats import LineFormatter
from server.log_handler import MAX_HELD, LineHandler


class CountedStream(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


@pytest.fixture
def stream() -> CountedStream:
    return CountedStream()


@pytest.fixture
def log(stream: CountedStream) -> Iterator[logging.Logger]:
    handler = LineHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("test_server_log_handler")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


async def test_lines_of_the_event_loop_are_written_together(
    log: logging.Logger, stream: CountedStream
) -> None:
    for number in range(10):
        log.info("%d", number)
    assert stream.getvalue() == ""
    await until(lambda: stream.writes)
    assert stream.getvalue() == "".join(f"{number}\n" for number in range(10))
    assert stream.writes == 1
    log.info("next")
    await until(lambda: stream.getvalue().endswith("next\n"))


async def test_a_warning_is_written_at_once_after_what_waits(
    log: logging.Logger, stream: CountedStream
) -> None:
    log.info("a")
    log.warning("b")
    assert stream.getvalue() == "a\nb\n"


async def test_no_more_than_so_many_wait(log: logging.Logger, stream: CountedStream) -> None:
    for _ in range(MAX_HELD):
        log.info("x")
    assert stream.getvalue() == "x\n" * MAX_HELD


def test_without_an_event_loop_a_line_is_written_at_once(
    log: logging.Logger, stream: CountedStream
) -> None:
    log.info("a")
    assert stream.getvalue() == "a\n"


async def test_a_thread_does_not_wait_for_the_loop(
    log: logging.Logger, stream: CountedStream
) -> None:
    log.info("a")
    thread = threading.Thread(target=log.info, args=("b",))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert stream.getvalue() == "a\nb\n"


async def test_what_waits_is_written_at_the_end(log: logging.Logger, stream: CountedStream) -> None:
    log.info("a")
    log.handlers[0].flush()  # as logging does when the process ends
    assert stream.getvalue() == "a\n"


def test_what_an_event_loop_that_ended_has_left_is_written_with_the_next_line(
    log: logging.Logger, stream: CountedStream
) -> None:
    async def say(text: str) -> None:
        log.info(text)

    async def say_and_wait() -> None:
        log.info("c")
        await until(lambda: stream.getvalue().endswith("c\n"))

    with asyncio.Runner() as runner:
        runner.run(say("a"))
    log.info("b")
    assert stream.getvalue() == "a\nb\n"
    with asyncio.Runner() as runner:
        runner.run(say("a"))
    with asyncio.Runner() as runner:
        runner.run(say_and_wait())
    assert stream.getvalue() == "a\nb\na\nc\n"


async def test_a_line_that_cannot_be_made_takes_no_other_with_it(
    log: logging.Logger,
    stream: CountedStream,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # pytest's own handler would
    log.handlers[0].setFormatter(LineFormatter(["known-secret"]))
    log.info("a")
    log.info("known-secret\n%d", "another secret")
    log.warning("b")
    first, instead, last = stream.getvalue().splitlines()
    assert (first[-7:], last[-10:]) == (" INFO a", " WARNING b")
    assert "ERROR" in instead
    assert "test_server_log_handler" in instead
    assert r"(hidden)\n%d" in instead
    assert "secret" not in instead + capsys.readouterr().err


async def test_a_stream_that_takes_nothing_fails_neither_who_logs_nor_the_event_loop(
    log: logging.Logger, stream: CountedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0

    def fail(text: str) -> int:
        nonlocal failures
        failures += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    with monkeypatch.context() as patch:
        patch.setattr(stream, "write", fail)
        log.warning("a")
        log.info("b")
        await until(lambda: failures == 2)
    log.warning("c")
    assert stream.getvalue() == "c\n"
    assert told == []


def test_the_time_of_a_line_is_loggings_own() -> None:
    record = logging.LogRecord("n", logging.INFO, "", 0, "m", None, None)
    for created in (1_795_360_674.0129, 1_795_360_674.9, 1_795_360_675.5):
        record.created, record.msecs = created, created % 1 * 1000
        assert LineFormatter().formatTime(record) == logging.Formatter().formatTime(record)
