"""What an answer must be before it is one: JSON that fits `response_format`, after the tools that had to be called.

In: the answers that an agent means to give. Out: the first that will do, as text; the agent is told what is
wrong with any other, and mends it, `MAX_MENDS` times. Then the run has failed: `AnswerRefused`, which is no
Exception, since smolagents takes those for one more mistake of the agent.
"""

import json
import re
from collections.abc import Collection
from typing import Any, NoReturn

from smolagents import ChatMessage, MessageRole, MultiStepAgent

from streaming.cancellation import StopSignal
from streaming.run_spec import AnswerFormat
from streaming.schema_check import check_schema, misfit
from streaming.steps import answer_text

MAX_MENDS = 3
_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n[ \t]*```\s*", re.DOTALL)


class AnswerRefused(BaseException):
    """No answer that would do came; the message is for the client."""


class AnswerCheck:
    """One run's. `called` is filled, elsewhere, with the names of the tools that were called."""

    def __init__(
        self,
        answer_format: AnswerFormat | None,
        must_call: Collection[str],
        called: Collection[str],
        stop: StopSignal,
    ) -> None:
        self._format = answer_format
        self._must_call = must_call
        self._called = called
        self._stop = stop
        self._refused = 0
        self._good: str | None = None
        if answer_format is not None and answer_format.schema is not None:
            check_schema(answer_format.schema, "response_format.json_schema.schema", stop)

    def instructions(self) -> str:
        """What the agent is told beforehand."""
        said = []
        if self._must_call:
            said.append(f"Before your final answer you must call {_one_of(self._must_call)}.")
        if self._format is not None:
            said.append("Your final answer must be a JSON object and nothing else.")
            if self._format.description:
                said.append(f"It is: {self._format.description}")
            if self._format.schema is not None:
                said.append("It must fit this JSON schema:\n" + json.dumps(self._format.schema))
        return "\n".join(said)

    def install(self, agent: MultiStepAgent) -> None:
        """From now on smolagents asks before it takes an answer, where there is something to ask."""
        if self._format is None and not self._must_call:
            return

        def answer_check(answer: Any, memory: Any, agent: Any) -> bool:
            del memory, agent
            if (wrong := self._wrong(answer_text(answer))) is not None:
                self._refuse(wrong)
                raise ValueError(wrong)
            return True

        agent.final_answer_checks = [*agent.final_answer_checks, answer_check]

    def passed(self, answer: str | None, agent: MultiStepAgent, task: str) -> str | None:
        """The answer as the client gets it. One that no step gave was not checked yet: where it is wrong,
        the model is asked for a better one. Raises AnswerRefused.
        """
        while (wrong := self._wrong(answer)) is not None:
            self._refuse(wrong)
            if self._format is None:
                self._give_up(wrong)
            answer = self._mended(agent, task, answer or "", wrong)
        return answer if self._format is None else _unfenced(answer or "")

    def _wrong(self, answer: str | None) -> str | None:
        if self._good is not None and answer == self._good:
            return None
        wrong = self._found_wrong(answer)
        self._good = answer if wrong is None else None
        return wrong

    def _found_wrong(self, answer: str | None) -> str | None:
        if self._must_call and not set(self._must_call) & set(self._called):
            return f"{_one_of(self._must_call)} must be called before the final answer."
        if self._format is None:
            return None
        try:
            value = json.loads(_unfenced(answer or ""), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return f"The final answer is not valid JSON: {error}."
        if self._format.schema is None:
            return None if isinstance(value, dict) else "The final answer is not a JSON object."
        found = misfit(value, self._format.schema, self._stop)
        return None if found is None else f"The final answer does not fit the JSON schema: {found}."

    def _refuse(self, wrong: str) -> None:
        self._refused += 1
        if self._refused > MAX_MENDS:
            self._give_up(wrong)

    def _give_up(self, wrong: str) -> NoReturn:
        raise AnswerRefused(f"The agent found no answer that is as it was asked for. {wrong}")

    def _mended(self, agent: MultiStepAgent, task: str, answer: str, wrong: str) -> str:
        messages = [
            _message(MessageRole.USER, task),
            _message(MessageRole.ASSISTANT, answer),
            _message(MessageRole.USER, f"{wrong}\nWrite the mended JSON object and nothing else."),
        ]
        content = agent.model.generate(messages).content
        return content if isinstance(content, str) else ""


def _message(role: Any, text: str) -> ChatMessage:
    return ChatMessage(role=role, content=[{"type": "text", "text": text}])


def _one_of(names: Collection[str]) -> str:
    said = ", ".join(names)
    return said if len(names) == 1 else f"one of {said}"


def _unfenced(answer: str) -> str:
    found = _FENCED.fullmatch(answer)
    return (found[1] if found else answer).strip()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
