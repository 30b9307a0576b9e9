"""The worker's end of the line to its server: questions out, answers and the stop in.

In: a connected socket. Out: `ask` for the run's threads, which wait there for the server's answer, and
the run's stop signal, set by the server or by the line's end. One thread of its own reads.
"""

import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from streaming.cancellation import StopSignal
from streaming.interpreters.jail_wire import FrameBuffer
from streaming.runners.frame_socket import READ_BYTES, receive_with_fds
from streaming.runners.run_wire import (
    MOST_FRAME_BYTES,
    Answered,
    Asked,
    Begin,
    FromServer,
    FromWorker,
    Refused,
    Stop,
    decode_from_server,
    encode_frame,
    error_of,
)


class _Question:
    """A thread waits for its answer."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.answer: Answered | Refused | None = None
        self.fds: list[int] = []


class ServerLine:
    """`flush` is called before a question goes out; it returns how many events went before it."""

    def __init__(self, link: socket.socket, stop: StopSignal) -> None:
        self._link = link
        self._stop = stop
        self._frames = FrameBuffer(MOST_FRAME_BYTES)
        self._fds: deque[int] = deque()
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._questions: dict[int, _Question] = {}
        self._next_id = 0
        self.flush: Callable[[], int] = lambda: 0

    def begin(self) -> Begin | None:
        """The first message, None where the server has gone; then the reading thread starts."""
        message = self._next_message()
        if not isinstance(message, Begin):
            return None
        threading.Thread(target=self._read, name="server-line", daemon=True).start()
        return message

    def send(self, message: FromWorker) -> None:
        """Blocks while the server takes nothing. Does nothing once it is gone: the stop is set then."""
        data = encode_frame(message)
        try:
            with self._sending:
                self._link.sendall(data)
        except OSError:
            self._stop.set("the server has gone")

    def ask(self, kind: str, value: Any, *, fds: int = 0) -> Any:
        """Ask the server and wait for its answer; with `fds`, the answer and so many descriptors.

        Raises RunCancelled once the run is stopped, and the SmolgateError that the server answers with.
        """
        self._stop.check()
        question = _Question()
        with self._lock:
            self._next_id += 1
            number = self._next_id
            self._questions[number] = question
        try:
            self.send(Asked(number, kind, value, self.flush()))
            with self._stop.watched_by(question.answered.set):
                question.answered.wait()
        finally:
            with self._lock:
                del self._questions[number]
        if question.answer is None:
            self._stop.check()
        if isinstance(question.answer, Refused):
            raise error_of(question.answer)
        assert question.answer is not None
        return (question.answer.value, question.fds) if fds else question.answer.value

    def close(self) -> None:
        """Say that nothing more will come, once all that was sent is on its way."""
        try:
            self._link.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other end closed first

    def _read(self) -> None:
        while (message := self._next_message()) is not None:
            match message:
                case Stop(reason=reason):
                    self._stop.set(reason)
                case Answered() | Refused():
                    self._take_answer(message)
        self._stop.set("the server has gone")

    def _take_answer(self, message: Answered | Refused) -> None:
        count = message.fds if isinstance(message, Answered) else 0
        fds = [self._fds.popleft() for _ in range(count)]
        with self._lock:
            question = self._questions.get(message.id)
        if question is None:  # nobody waits for it any more
            for fd in fds:
                socket.close(fd)
            return
        question.fds = fds
        question.answer = message
        question.answered.set()

    def _next_message(self) -> FromServer | None:
        while (frame := self._frames.next_frame()) is None:
            try:
                data = receive_with_fds(self._link, READ_BYTES, self._fds)
            except OSError:
                return None
            if not data:
                return None
            self._frames.feed(data)
        return decode_from_server(frame)
