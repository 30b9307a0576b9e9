"""A run's events → what a reader sees: reasoning as Markdown, live, and the answer.

In: events, one by one. Out: pieces of reasoning text as soon as they are certain, cleaned line by
line; at the end the answer. Nothing appears twice: code that was streamed as tokens is not repeated by
its step, nor are prints. What the model writes stands as it is, its code fenced; what runs print stands
in a fence of its own, which is longer than any that prints are likely to hold.
"""

import re

from sanitize.line_noise import LineDenoiser
from sanitize.reasoning_lines import LineCleaner, clean_lines
from sanitize.think import ThinkScrubber, scrub
from streaming.events import (
    Event,
    Failure,
    Final,
    ModelCalled,
    ModelDelta,
    Note,
    Paused,
    Plan,
    Print,
    Started,
    Stdout,
    Step,
    ToolCall,
)
from streaming.run_spec import CalledTool

NO_ANSWER = "Done."
OUTPUT_FENCE = "`" * 4
PRINTED_ANSWER = "final answer:"
MAX_PRINTED_ANSWER = 4096  # characters of one line that are looked at
_OUTPUT_FENCE_LINE = re.compile(rf"^(?=[ \t]{{0,3}}{OUTPUT_FENCE})", re.MULTILINE)
_FENCE_LINE = re.compile(r"^[ \t]{0,3}(`{3,})", re.MULTILINE)


class Transcript:
    """Feed it a run's events; `answer`, `tool_calls` or `failure` is set by the last one.

    `tag_names` are the think tags taken out of everything. A later leg of a run goes on within a step
    whose code was shown: it is given the run's `code_tags`.
    """

    def __init__(
        self,
        *,
        tag_names: tuple[str, ...] = ("think", "thank"),
        code_tags: tuple[str, str] | None = None,
        is_later_leg: bool = False,
    ) -> None:
        self._tag_names = tag_names
        self._code_tags = code_tags or ("<code>", "</code>")
        self._section: _ModelSection | _OutputSection | None = None
        self._line_begins = True
        self._blank_before = True
        self._wrote = is_later_leg  # the model has written since the last step,
        self._wrote_code = is_later_leg  # code among it
        self._printed_answer: str | None = None
        self._printed_rest = ""
        self.answer: str | None = None
        self.answer_is_cut = False
        self.tool_calls: tuple[CalledTool, ...] = ()
        self.failure: Failure | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.reasoning_tokens = 0

    def feed(self, event: Event) -> str:
        """The reasoning text that follows from one event; may be empty."""
        if type(event) is ModelDelta:
            return self._into_model(event.text, thinking=event.thinking)
        if type(event) is Print or type(event) is Stdout:
            self._watch_for_answer(event.text)
            return self._into_output(event.text)
        match event:
            case Step():
                return self._leave() + self._step(event)
            case Plan(text=text):
                left = self._leave()
                shown = "" if self._wrote else self._clean(text)
                self._wrote = self._wrote_code = False
                return left + self._block(shown)
            case ToolCall(name=name, arguments=arguments):
                return self._leave() + self._block(self._clean(f"Tool call: `{name}({arguments})`"))
            case Note(text=text):
                return self._leave() + self._block(self._clean(text))
            case Started(code_tags=code_tags):
                self._code_tags = code_tags or self._code_tags
                return ""
            case ModelCalled():
                self.prompt_tokens += event.prompt_tokens
                self.completion_tokens += event.completion_tokens
                self.reasoning_tokens += event.reasoning_tokens
                return ""
            case Final(answer=answer, cut=cut):
                self.answer = self._answer(answer)
                self.answer_is_cut = cut
                return self._leave()
            case Paused(calls=calls):
                self.tool_calls = calls
                return self._leave()
            case Failure():
                self.failure = event
                return self._leave()
            case _:
                return ""

    def _into_model(self, text: str, *, thinking: bool) -> str:
        begin = ""
        section = self._section
        if not isinstance(section, _ModelSection) or section.thinking != thinking:
            begin = self._leave() + self._gap()
            section = _ModelSection(self._code_tags, self._tag_names, thinking=thinking)
            self._section = section
        self._wrote = self._wrote or not thinking
        shown = section.feed(text)
        self._wrote_code = self._wrote_code or section.shows_code
        return begin + self._said(shown)

    def _into_output(self, text: str) -> str:
        begin = ""
        if not isinstance(self._section, _OutputSection):
            begin = self._leave()
            self._section = _OutputSection(self._tag_names)
        body = self._section.feed(text)
        if body and not self._section.opened:
            self._section.opened = True
            body = self._gap() + f"{OUTPUT_FENCE}text\n" + body
        return begin + self._said(body)

    def _leave(self) -> str:
        """End the section that is open: what it held back, its fence closed."""
        section, self._section = self._section, None
        if section is None:
            return ""
        rest = section.flush()
        if isinstance(section, _ModelSection):
            self._wrote_code = self._wrote_code or section.shows_code
        if isinstance(section, _OutputSection):
            if rest and not section.opened:
                section.opened = True
                rest = self._gap() + f"{OUTPUT_FENCE}text\n" + rest
            text = self._said(rest)
            return (
                text + self._said(self._end_line() + OUTPUT_FENCE + "\n")
                if section.opened
                else text
            )
        return self._said(rest)

    def _step(self, step: Step) -> str:
        parts = []
        if step.code and not self._wrote_code:
            parts.append(_fenced_code(self._clean(step.code, code=True)))
        if step.observation and (observation := self._clean(step.observation)):
            parts.append(f"{OUTPUT_FENCE}text\n{_fence_safe(observation)}\n{OUTPUT_FENCE}")
        if step.error:
            parts.append(f"**Error:** {self._clean(step.error)}")
        parts.append(f"**Step {step.number}** ({step.seconds:.2f} s)")
        self._wrote = self._wrote_code = False
        return "".join(map(self._block, parts))

    def _clean(self, text: str, *, code: bool = False) -> str:
        if code:
            return scrub(text, tag_names=self._tag_names).strip("\n")
        return clean_lines(text, tag_names=self._tag_names).strip("\n")

    def _block(self, text: str) -> str:
        return self._said(self._gap() + text + "\n") if text else ""

    def _gap(self) -> str:
        """What brings a new block to the start of a line, after a blank one."""
        return "" if self._blank_before else self._end_line() + "\n"

    def _end_line(self) -> str:
        return "" if self._line_begins else "\n"

    def _said(self, text: str) -> str:
        if text:
            self._line_begins = text.endswith("\n")
            self._blank_before = text.endswith("\n\n")
        return text

    def _watch_for_answer(self, text: str) -> None:
        text = self._printed_rest + text
        end = text.rfind("\n") + 1
        self._printed_rest = text[end : end + MAX_PRINTED_ANSWER]
        if PRINTED_ANSWER not in text.lower():
            return
        for line in text[:end].split("\n"):
            said = line[:MAX_PRINTED_ANSWER].strip()
            if said[: len(PRINTED_ANSWER)].lower() == PRINTED_ANSWER:
                self._printed_answer = said[len(PRINTED_ANSWER) :].strip() or self._printed_answer

    def _answer(self, answer: str | None) -> str:
        if answer is None or not answer.strip():
            self._watch_for_answer("\n")
            answer = self._printed_answer
        return scrub(answer or "", tag_names=self._tag_names).strip() or NO_ANSWER


class _ModelSection:
    """What the model writes, or thinks: its code tags become fences, and one it leaves open is closed.

    `shows_code` once a fence was among what it wrote.
    """

    def __init__(
        self, code_tags: tuple[str, str], tag_names: tuple[str, ...], *, thinking: bool
    ) -> None:
        self._cleaner = LineCleaner(code_block_tags=code_tags, tag_names=tag_names)
        self.thinking = thinking
        self.shows_code = False

    def feed(self, text: str) -> str:
        return self._noted(self._cleaner.feed(text))

    def flush(self) -> str:
        return self._noted(self._cleaner.flush())

    def _noted(self, text: str) -> str:
        if not self.thinking and (self._cleaner.in_fence or "```" in text):
            self.shows_code = True
        return text


class _OutputSection:
    """What runs print: no Markdown, so no fences in it. `opened` once its own has been written."""

    def __init__(self, tag_names: tuple[str, ...]) -> None:
        self._scrubber = ThinkScrubber("tags", tag_names)
        self._denoiser = LineDenoiser()
        self.opened = False

    def feed(self, text: str) -> str:
        return _fence_safe(self._denoiser.feed(self._scrubber.feed(text)))

    def flush(self) -> str:
        rest = self._denoiser.feed(self._scrubber.flush()) + self._denoiser.flush()
        return _fence_safe(rest)


def _fenced_code(code: str) -> str:
    """Code that is there as a whole, in a fence longer than any that it holds."""
    longest = max((len(marks) for marks in _FENCE_LINE.findall(code)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}python\n{code}\n{fence}"


def _fence_safe(text: str) -> str:
    """A line that would close the fence around it is indented, which Markdown takes as text."""
    return _OUTPUT_FENCE_LINE.sub("    ", text) if OUTPUT_FENCE in text else text
