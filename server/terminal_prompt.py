"""Questions from whoever types: line editing, a history that stays, and texts of many lines.

In: keys. Out: a question, or None for the end of it. A pasted text is one question where readline knows a
paste; elsewhere three double quotes open a text of many lines and close it. The history is a file that nobody else may read.
"""

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

PROMPT, MORE = "> ", ". "
QUOTES = '"""'
MAX_HISTORY = 1000


class Prompt:
    """`with Prompt(path) as prompt`. Reads the terminal; raises KeyboardInterrupt at Ctrl-C."""

    def __init__(self, history: Path) -> None:
        self._history = history
        self._readline: ModuleType | None = None

    def __enter__(self) -> "Prompt":
        try:
            import readline
        except ImportError:
            return self
        self._readline = readline
        readline.parse_and_bind("set enable-bracketed-paste on")
        readline.set_history_length(MAX_HISTORY)
        with contextlib.suppress(OSError):
            readline.read_history_file(self._history)
        return self

    def __exit__(self, *_: object) -> None:
        if self._readline is None:
            return
        with contextlib.suppress(OSError):  # a home that cannot be written to has no history
            self._history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._history, os.O_CREAT | os.O_WRONLY, 0o600))
            self._readline.write_history_file(self._history)

    def read(self) -> str | None:
        """The next question, stripped; None at Ctrl-D."""
        # An event loop's own handler would cancel its task, and the prompt would go on.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            text = input(PROMPT).strip()
            if text.startswith(QUOTES):
                text = self._until_closed(text.removeprefix(QUOTES))
        except EOFError:
            return None
        finally:
            signal.signal(signal.SIGINT, before)
        return text

    def _until_closed(self, text: str) -> str:
        while not text.rstrip().endswith(QUOTES):
            text += "\n" + input(MORE)
        return text.rstrip().removesuffix(QUOTES).strip()


def history_path(environment: Mapping[str, str]) -> Path:
    """In the state folder, as the XDG base directory specification has it."""
    state = environment.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return folder / "smolgate" / "chat_history"
