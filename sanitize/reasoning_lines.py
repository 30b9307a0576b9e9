"""What an agent writes and prints in, line-cleaned markdown out, as it comes.

Three stages in a row, a flush pushing each tail through the next: think tags go, code tags
become fences, and prose lines lose console noise. Code keeps every character.
"""

from collections.abc import Sequence

from sanitize.code_fences import CodeFencer
from sanitize.line_noise import LineDenoiser
from sanitize.think import DEFAULT_TAG_NAMES, ThinkScrubber


class LineCleaner:
    """Cleans agent reasoning that comes in pieces.

    `code_block_tags` are the tags in which the agent's prompt asks for code; errors are those of
    CodeFencer and ThinkScrubber.
    """

    def __init__(
        self,
        code_block_tags: Sequence[str] = ("<code>", "</code>"),
        tag_names: Sequence[str] = DEFAULT_TAG_NAMES,
    ) -> None:
        self._scrubber = ThinkScrubber("tags", tag_names)
        self._fencer = CodeFencer(code_block_tags)
        self._prose = LineDenoiser()

    @property
    def in_fence(self) -> bool:
        """True when a code fence is open in what was returned so far."""
        return self._fencer.in_fence

    def feed(self, text: str) -> str:
        """Take the next piece, return the text that is settled by now."""
        return self._clean(self._fencer.feed(self._scrubber.feed(text)))

    def flush(self) -> str:
        """Return what was held, closing an open fence; the cleaner is then as new."""
        pieces = self._fencer.feed(self._scrubber.flush()) + self._fencer.flush()
        return self._clean(pieces) + self._prose.flush()

    def _clean(self, pieces: list[tuple[str, bool]]) -> str:
        # Code begins at a line's start, so no prose is held when it comes.
        return "".join([text if is_code else self._prose.feed(text) for text, is_code in pieces])


def clean_lines(
    text: str,
    code_block_tags: Sequence[str] = ("<code>", "</code>"),
    tag_names: Sequence[str] = DEFAULT_TAG_NAMES,
) -> str:
    """Return a whole text cleaned; see LineCleaner."""
    cleaner = LineCleaner(code_block_tags, tag_names)
    return cleaner.feed(text) + cleaner.flush()
