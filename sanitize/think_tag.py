"""What a think tag looks like: tag names in, places of tags and of unfinished tags out.

An opening bracket in any of its spellings, an optional slash, spaces before and after that, a
name, and either the closing bracket or white space or a slash with attributes up to it. The
first bracket after the name decides, whatever its spelling: a tag never holds another's opening.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

# Spaces or tabs after `<` and after `</`. Models were seen to write one; the bound is what keeps
# hold-back short where a `<` stands before a long run of spaces.
MAX_SPACES = 16

# Characters of the attributes, as the product says. White space or slash that ends the name is
# not one of them.
MAX_ATTRIBUTES = 256

_LT = r"(?:<|&(?ai:lt);|\\u003[cC])"
_GT = r"(?:>|&(?ai:gt);|\\u003[eE])"
_SPACES = rf"[ \t]{{0,{MAX_SPACES}}}+"
# Unbounded here, so that a long run is read once at the speed of a character class; the length
# is looked at afterwards. Ends before any opening bracket: no character is read for two tags. Its repeat
# is not possessive: CPython 3.11.2 then counts what it had matched of a round that fails.
_REST = rf"(?P<rest>(?:[^\S\r\n]|/)(?:[^<>&\\\r\n]++|(?!{_LT}|{_GT})[&\\])*)"

_UNFINISHED_GT = re.compile(r"(?:&(?ai:gt?)?|\\(?:u(?:0(?:03?)?)?)?)\Z")


class ThinkTagPattern:
    """Finds tags of the given names. Raises ValueError for names that cannot be told apart."""

    def __init__(self, tag_names: Sequence[str]) -> None:
        if not tag_names or any(re.search(r"[\s<>&/\\]|\A\Z", name) for name in tag_names):
            raise ValueError(f"tag names must be words without brackets or spaces: {tag_names!r}")
        names = [_any_case(name) for name in tag_names]
        whole_name = _one_of(*("".join(name) for name in names))
        self._tag = re.compile(
            rf"{_LT}{_SPACES}(?P<slash>/)?(?(slash){_SPACES}){whole_name}{_REST}?{_GT}"
        )

        lt = _one_of(
            "<", "&" + _unfinished([*_any_case("lt"), ";"]), r"\\" + _unfinished([*"u003", "[cC]"])
        )
        gt = _one_of("&" + _unfinished(_any_case("gt")), r"\\" + _unfinished("u003"))
        name_and_more = _one_of(*map(_unfinished, names)) + _one_of(
            r"\Z", _REST + r"\Z", gt + r"\Z"
        )
        after_lt = rf"{_SPACES}(?:/{_SPACES})?" + _one_of(r"\Z", name_and_more)
        self._unfinished = re.compile(lt + _one_of(r"\Z", after_lt))

        # What nearly all unfinished tags look like.
        whole = (f"<{slash}{name}" for name in tag_names for slash in ("", "/"))
        self._beginnings = {tag[:size] for tag in whole for size in range(1, len(tag) + 1)}
        bracket = len(r"\u003c")
        self._longest = 2 * (bracket + MAX_SPACES + 1) + max(map(len, tag_names)) + MAX_ATTRIBUTES

    def search(self, text: str, start: int) -> re.Match[str] | None:
        """The first tag at or after `start`; `is_closing` and `kind_of` tell which."""
        if not (">" in text or "&" in text or "\\" in text):
            return None  # nothing ends here
        while (tag := self._tag.search(text, start)) is not None:
            rest = tag["rest"]
            if rest is None or not _is_too_long(rest):
                return tag
            start = tag.start() + 1
        return None

    def find_unfinished(self, text: str, start: int) -> int:
        """Where the tag begins that `text` may end in the middle of, or else its length."""
        if start == len(text) or text[start:] in self._beginnings:
            return start
        start = max(start, len(text) - self._longest)
        while (match := self._unfinished.search(text, start)) is not None:
            rest = match["rest"]
            if rest is None or not _is_too_long(_UNFINISHED_GT.sub("", rest)):
                return match.start()
            start = match.start() + 1
        return len(text)


@lru_cache(maxsize=16)  # pure: a stream makes several scrubbers, all with the settings' names
def make_pattern(tag_names: tuple[str, ...]) -> ThinkTagPattern:
    """Return the pattern for these names; ValueError as ThinkTagPattern raises it."""
    return ThinkTagPattern(tag_names)


def is_closing(tag: re.Match[str]) -> bool:
    """True for `</think>`, also when it ends in a slash."""
    return tag["slash"] is not None


def kind_of(tag: re.Match[str]) -> tuple[bool, bool]:
    """Whether it closes, and whether it opens: a self-closing tag does neither."""
    slash, rest = tag.group("slash", "rest")
    if slash is not None:
        return True, False
    return False, rest is None or not rest.rstrip().endswith("/")


def _one_of(*patterns: str) -> str:
    return f"(?:{'|'.join(patterns)})"


def _unfinished(tokens: Sequence[str]) -> str:
    """A pattern for `tokens` in a row, or for any beginning of them that ends the text."""
    pattern = ""
    for token in reversed(tokens):
        pattern = _one_of(r"\Z", token + pattern)
    return pattern


def _any_case(text: str) -> list[str]:
    # ASCII names in ASCII case only: Unicode would take the Kelvin sign for a k.
    flags = "ai" if text.isascii() else "i"
    return [f"(?{flags}:{re.escape(character)})" for character in text]


def _is_too_long(rest: str) -> bool:
    return len(rest) > MAX_ATTRIBUTES + 1
