"""How an agent is best told a conversation: as turns, as smolagents' own steps, or as one text.

    turns   one memory step a turn, which the model sees as the message that it was (streaming/history.py)
    steps   smolagents' TaskStep and ActionStep: each earlier question is marked as a "New task"
    text    the conversation written out in the task

On the embedded model: how many questions about earlier turns the default agent gets right. On a model that
only records: what a conversation of 8 rounds makes it read, and how much of that it has read already in
the round before, in the same place, which servers keep cached.

    python -m bench.conversations
"""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from os.path import commonprefix
from typing import Any, NamedTuple

from smolagents import ChatMessage, CodeAgent, LogLevel, MessageRole, Model, MultiStepAgent
from smolagents.memory import ActionStep, TaskStep
from smolagents.monitoring import Timing, TokenUsage

from server.code_writing_agent import create_agent
from server.embedded import MODEL, EmbeddedUpstream
from streaming.agent_context import AgentContext
from streaming.history import remember
from streaming.run_spec import Turn

ROUNDS = 8


class Asked(NamedTuple):
    """A conversation whose last question needs what was said before."""

    said: tuple[str, ...]
    question: str
    answer: str


ASKED = (
    Asked(("What is 12 plus 30?", "42"), "Multiply that by 2.", "84"),
    Asked(("What is 10 times 10?", "100"), "And 10 times 11?", "110"),
    Asked(("My name is Anna.", "Hello Anna."), "What is my name?", "Anna"),
    Asked(("I have 5 apples.", "Noted."), "I buy 3 more. How many apples have I got?", "8"),
    Asked(("Compute 144 / 12", "12.0"), "What is 81 / 9?", "9"),
    Asked(("Hello", "Hello! How can I help?"), "What is 17 * 23?", "391"),
    Asked(("What is 7 * 8?", "56"), "What is 100 - 37?", "63"),
    Asked(("What is the largest of 3, 9, 4?", "9"), "And the smallest?", "3"),
    Asked(("6 times 7", "42", "Thanks", "You are welcome."), "What is 250 + 375?", "625"),
    Asked(("How many minutes are 2 hours?", "120"), "And 3 hours?", "180"),
    Asked(("What is 2 ** 10?", "1024"), "What is 2 ** 8?", "256"),
    Asked(("I live in Oslo.", "A fine city."), "In which city do I live?", "Oslo"),
)


def turns_of(said: Sequence[str]) -> list[Turn]:
    return [Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(said)]


def as_turns(agent: MultiStepAgent, said: Sequence[str], question: str) -> str:
    remember(agent, turns_of(said))
    return question


def as_steps(agent: MultiStepAgent, said: Sequence[str], question: str) -> str:
    timing = Timing(time.time(), time.time())
    agent.memory.steps = [
        ActionStep(step_number=i, timing=timing, model_output=text) if i % 2 else TaskStep(text)
        for i, text in enumerate(said)
    ]
    return question


def as_text(agent: MultiStepAgent, said: Sequence[str], question: str) -> str:
    del agent
    told = [f"{'Assistant' if i % 2 else 'User'}: {text}" for i, text in enumerate(said)]
    return "\n".join(["What was said before:", *told, "", question]) if said else question


Way = Callable[[MultiStepAgent, Sequence[str], str], str]
WAYS: dict[str, Way] = {"turns": as_turns, "steps": as_steps, "text": as_text}


class PostedModel(Model):  # type: ignore[misc]  # smolagents is untyped
    """Bodies through the agent's own shape, one POST each."""

    def __init__(self, base: str, shape: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(model_id=MODEL)
        self._base = base
        self._shape = shape

    def generate(self, messages: Any, stop_sequences: Any = None, **_: Any) -> ChatMessage:
        body = self._prepare_completion_kwargs(messages=messages, stop_sequences=stop_sequences)
        request = urllib.request.Request(
            f"{self._base}/chat/completions",
            json.dumps({"model": MODEL, **self._shape(body)}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as reply:
            answer = json.load(reply)
        usage = answer["usage"]
        return ChatMessage(
            role=MessageRole.ASSISTANT,
            content=answer["choices"][0]["message"]["content"],
            token_usage=TokenUsage(usage["prompt_tokens"], usage["completion_tokens"]),
        )


class RecordingModel(Model):  # type: ignore[misc]
    """Answers at once; `read` is what it was given, written out."""

    read = ""

    def generate(self, messages: Any, stop_sequences: Any = None, **_: Any) -> ChatMessage:
        body = self._prepare_completion_kwargs(messages=messages, stop_sequences=stop_sequences)
        self.read = "".join(
            f"<{message['role'].value}>" + "".join(part["text"] for part in message["content"])
            for message in body["messages"]
        )
        return ChatMessage(
            role=MessageRole.ASSISTANT, content="<code>\nfinal_answer('so')\n</code>"
        )


def run(agent: CodeAgent, way: Way, said: Sequence[str], question: str) -> str:
    agent.logger.level = LogLevel.OFF
    task = way(agent, said, question)
    return str(agent.run(task, reset=False))


def right_on_embedded(base: str, way: Way) -> int:
    right = 0
    for asked in ASKED:
        context = AgentContext(
            run_id="bench",
            make_model=lambda shape: PostedModel(base, shape),
            embedded=True,
        )
        answer = run(create_agent(context), way, asked.said, asked.question)
        right += asked.answer in answer
    return right


def read_by_recorder(way: Way) -> tuple[int, float, int]:
    """Characters of the last round, the cached share of them, and how often "New task" is among them."""
    model = RecordingModel(model_id="recorder")
    said: list[str] = []
    before = read = ""
    for number in range(ROUNDS):
        context = AgentContext(
            run_id="bench",
            make_model=lambda: model,
            embedded=False,
        )
        before = read
        question = f"Question {number}: " + "what then? " * 10
        run(create_agent(context), way, said, question)
        read = model.read
        said += [question, f"Answer {number}: " + "this then. " * 10]
    cached = len(commonprefix([before, read]))  # noqa: RUF071 - of texts, by character
    return len(read), cached / len(read), read.count("New task:")


async def main() -> None:
    async with EmbeddedUpstream() as embedded:
        await embedded.wait_ready(60)
        right = {
            name: await asyncio.to_thread(right_on_embedded, embedded.base_url, way)
            for name, way in WAYS.items()
        }
    print(f"{'way':8}{'right, embedded':>18}{'characters':>12}{'cached':>8}{'New task':>10}")
    for name, way in WAYS.items():
        characters, cached, tasks = read_by_recorder(way)
        score = f"{right[name]} of {len(ASKED)}"
        print(f"{name:8}{score:>18}{characters:>12}{cached:>8.1%}{tasks:>10}")


if __name__ == "__main__":
    asyncio.run(main())
