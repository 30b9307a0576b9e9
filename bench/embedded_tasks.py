"""How many simple tasks the agent on the embedded model gets right, and in what time.

    python bench/embedded_tasks.py                     real CodeAgents on a model started here
    python bench/embedded_tasks.py --base-url http://127.0.0.1:8000/v1 --model code-writing-agent
                                                       the same tasks through a running gateway

DEV is what prompt, examples and grammar were tuned on. TEST was written before the tuning began and is only
measured; a TEST task that is tuned on moves to DEV, and a new one takes its place. Exits 1 when TEST is
below 95 % on two-operand arithmetic or 65 % overall.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

ARITHMETIC = "two-operand arithmetic"


class Contains(NamedTuple):
    """Right when any of the words is in the reply: for chat, where no one wording is the answer."""

    words: tuple[str, ...]


class BenchTask(NamedTuple):
    kind: str
    text: str
    answers: tuple[object, ...]


YES = (True, "yes", "true")
NO = (False, "no", "false")


def _tasks(kind: str, rows: list[tuple[str, object]]) -> tuple[BenchTask, ...]:
    return tuple(BenchTask(kind, text, a if type(a) is tuple else (a,)) for text, a in rows)


DEV = (
    *_tasks(
        ARITHMETIC,
        [
            ("What is 17 * 23?", 391),
            ("What is 12 plus 30?", 42),
            ("Compute 144 / 12", 12),
            ("What is 100 - 37?", 63),
            ("6 times 7", 42),
            ("What is 81 divided by 9?", 9),
            ("Calculate 250 + 375.", 625),
            ("What is 7 ** 3?", 343),
            ("What is 29 % 4?", 1),
            ("What is 45 // 6?", 7),
            ("Subtract 18 from 90.", 72),
            ("What is 3.5 + 2.25?", 5.75),
            ("Multiply 64 and 12.", 768),
            ("what's 2 to the power of 10?", 1024),
            ("1234 + 4321 = ?", 5555),
            ("What is the remainder when 17 is divided by 5?", 2),
            ("What is the product of 15 and 6?", 90),
            ("What is the sum of 48 and 27?", 75),
            ("What is the difference between 50 and 8?", 42),
            ("How much is 9 minus 14?", -5),
        ],
    ),
    *_tasks(
        "primes",
        [
            ("Is 97 prime?", YES),
            ("Is 91 a prime number?", NO),
            ("What is the 10th prime number?", 29),
            ("How many primes are there below 100?", 25),
            ("List the primes below 20.", ([2, 3, 5, 7, 11, 13, 17, 19],)),
            ("Is 57 prime?", NO),
            ("What is the 25th prime?", 97),
        ],
    ),
    *_tasks(
        "letters and words",
        [
            ("How many r in strawberry?", 3),
            ("How many times does the letter a appear in banana?", 3),
            ("How many s are in the word mississippi?", 4),
            ("Reverse the word hello.", "olleh"),
            ("Spell python backwards.", "nohtyp"),
            ("How many letters are in the word elephant?", 8),
            ("What is the length of the word keyboard?", 8),
            ("Write the word apple in capital letters.", "APPLE"),
            ("Is level a palindrome?", YES),
        ],
    ),
    *_tasks(
        "ranges",
        [
            ("What is the sum of the numbers from 1 to 100?", 5050),
            ("Add up all integers from 5 to 15.", 110),
            ("Sum of the squares from 1 to 10?", 385),
            ("What is the sum of all even numbers from 1 to 20?", 110),
            ("Sum 1 through 50", 1275),
        ],
    ),
    *_tasks(
        "conversions",
        [
            ("How many minutes are in 3 hours?", 180),
            ("Convert 5 km to m.", 5000),
            ("How many grams are in 2.5 kg?", 2500),
            ("How many hours are in 4 days?", 96),
            ("Convert 25 degrees Celsius to Fahrenheit.", 77),
            ("How many seconds are in 2 hours?", 7200),
            ("Convert 120 minutes to hours.", 2),
            ("Convert 3000 meters to kilometers.", 3),
        ],
    ),
    *_tasks(
        "lists",
        [
            ("What is the largest of 4, 19, 7 and 12?", 19),
            ("Find the minimum of 8, 3, 5.", 3),
            ("Sort 9, 2, 7, 4 in ascending order.", ([2, 4, 7, 9],)),
            ("What is the sum of 3, 5, 7 and 9?", 24),
            ("What is the average of 10, 20 and 60?", 30),
            ("Sort 5, 1, 8 in descending order.", ([8, 5, 1],)),
        ],
    ),
    *_tasks(
        "numbers",
        [
            ("What is 5 factorial?", 120),
            ("What is 9 squared?", 81),
            ("What is the square root of 144?", 12),
            ("What is 15% of 200?", 30),
            ("Is 44 even or odd?", ("even",)),
            ("Is 13 an odd number?", (*YES, "odd")),
            ("What is 4 cubed?", 64),
            ("What is 20 percent of 80?", 16),
        ],
    ),
    *_tasks(
        "chat",
        [
            ("Hello", Contains(("hello", "hi", "help"))),
            ("Who are you?", Contains(("assistant", "agent", "smol", "model"))),
            ("What is the capital of France?", Contains(("paris",))),
            ("Thank you!", Contains(("welcome", "glad", "help"))),
            ("What color is the sky?", Contains(("blue",))),
            ("What is the capital of Japan?", Contains(("tokyo",))),
        ],
    ),
)

TEST = (
    *_tasks(
        ARITHMETIC,
        [
            ("What is 38 * 46?", 1748),
            ("What is 519 + 286?", 805),
            ("What is 903 - 458?", 445),
            ("What is 96 / 8?", 12),
            ("Work out 73 times 14.", 1022),
            ("Can you add 67 and 88 for me?", 155),
            ("Please divide 630 by 7", 90),
            ("What do you get if you subtract 45 from 212?", 167),
            ("11 ** 4", 14641),
            ("What is 100 % 7?", 2),
            ("What is 77 // 5?", 15),
            ("Tell me 55 plus 66.", 121),
            ("How much is 8 multiplied by 125?", 1000),
            ("What is 3 to the power of 7?", 2187),
            ("7.5 * 4 = ?", 30),
            ("What does 1000 minus 1 equal?", 999),
            ("Find the product of 31 and 19.", 589),
            ("Find the remainder of 58 divided by 9.", 4),
            ("Evaluate 84 - 129", -45),
            ("I have 23 apples and buy 19 more. How many apples do I have?", 42),
            ("what is 2048 divided by 64", 32),
            ("What is 12345 + 54321?", 66666),
            ("Give me the sum of 305 and 95.", 400),
            ("How much is 4.2 plus 1.3?", 5.5),
            ("What's 60 times 60?", 3600),
            ("what is the difference of 71 and 26", 45),
        ],
    ),
    *_tasks(
        "primes",
        [
            ("Is 83 a prime?", YES),
            ("Check whether 119 is prime.", NO),
            ("Find the 15th prime number.", 47),
            ("How many prime numbers are less than 60?", 17),
            ("Give me all prime numbers up to 30.", ([2, 3, 5, 7, 11, 13, 17, 19, 23, 29],)),
            ("Is the number 143 prime?", NO),
            ("What's the 8th prime?", 19),
            ("Count the primes below 40.", 12),
        ],
    ),
    *_tasks(
        "letters and words",
        [
            ("How many e are in cheese?", 3),
            ("Count the letter o in chocolate.", 2),
            ("How often does t occur in attention?", 3),
            ("How many p's are there in the word pepper?", 3),
            ("What is garden spelled backwards?", "nedrag"),
            ("Reverse the string window", "wodniw"),
            ("Write the word planet in reverse.", "tenalp"),
            ("How long is the word umbrella?", 8),
            ("How many characters does the word mountain have?", 8),
            ("Is racecar a palindrome?", YES),
            ("Convert the word tiger to uppercase.", "TIGER"),
            ("How many letters does butterfly have?", 9),
        ],
    ),
    *_tasks(
        "ranges",
        [
            ("What is the sum of all numbers from 1 to 200?", 20100),
            ("Compute the sum of integers from 20 to 30.", 275),
            ("Find the sum of the squares of the numbers from 1 to 6.", 91),
            ("Add the numbers 1 to 12 together.", 78),
            ("What is the sum of the odd numbers from 1 to 30?", 225),
            ("What is the total of all whole numbers between 1 and 75, inclusive?", 2850),
        ],
    ),
    *_tasks(
        "conversions",
        [
            ("How many minutes are there in 7 hours?", 420),
            ("How many seconds is 9 minutes?", 540),
            ("Convert 12 kilometers to meters.", 12000),
            ("How many hours do 6 days have?", 144),
            ("What is 100 Celsius in Fahrenheit?", 212),
            ("Convert 50 degrees Fahrenheit to Celsius.", 10),
            ("How many kilograms are 4500 grams?", 4.5),
            ("Change 300 minutes into hours.", 5),
            ("How many days are in 3 weeks?", 21),
            ("How many centimeters are in 6 meters?", 600),
        ],
    ),
    *_tasks(
        "lists",
        [
            ("Which number is the biggest: 31, 87, 45?", 87),
            ("What is the maximum of 14, 3, 22, 9?", 22),
            ("What is the smallest number among 66, 12, 40 and 25?", 12),
            ("Put these numbers in order: 8, 6, 1, 3", ([1, 3, 6, 8],)),
            ("Sort the list [30, 10, 20] from largest to smallest.", ([30, 20, 10],)),
            ("Find the mean of 4, 8, 12 and 16.", 10),
            ("Add 11, 22 and 33.", 66),
        ],
    ),
    *_tasks(
        "numbers",
        [
            ("Calculate the factorial of 7.", 5040),
            ("What is 6!?", 720),
            ("What is the square of 14?", 196),
            ("Find the square root of 625.", 25),
            ("How much is 35% of 60?", 21),
            ("What is 8 percent of 250?", 20),
            ("Is 71 odd or even?", ("odd",)),
            ("Is 128 an even number?", (*YES, "even")),
            ("What is 5 cubed?", 125),
        ],
    ),
    *_tasks(
        "chat",
        [
            ("Hi there!", Contains(("hello", "hi", "help"))),
            ("Good morning", Contains(("morning", "hello", "hi ", "help"))),
            ("What are you?", Contains(("assistant", "agent", "smol", "model"))),
            ("What is the capital of Italy?", Contains(("rome",))),
            ("Which planet do we live on?", Contains(("earth",))),
            ("What is the opposite of cold?", Contains(("hot", "warm"))),
            ("Thanks a lot", Contains(("welcome", "glad", "help"))),
        ],
    ),
)


Answerer = Callable[[str], Awaitable[Any]]

TARGETS = {ARITHMETIC: 0.95, "overall": 0.65}


class Result(NamedTuple):
    task: BenchTask
    answer: Any
    right: bool
    seconds: float


def is_right(answer: Any, task: BenchTask) -> bool:
    """Compared as values: numbers with tolerance, text casefolded and stripped."""
    return any(_matches(answer, accepted) for accepted in task.answers)


def _matches(answer: Any, accepted: object) -> bool:
    if isinstance(accepted, Contains):
        text = str(answer).casefold()
        return isinstance(answer, str) and any(word in text for word in accepted.words)
    answer = _value(answer)
    if isinstance(accepted, bool) or isinstance(answer, bool):
        return answer is accepted
    if isinstance(accepted, (int, float)):
        return isinstance(answer, (int, float)) and math.isclose(answer, accepted, rel_tol=1e-6)
    if isinstance(accepted, str):
        return isinstance(answer, str) and answer.strip().casefold() == accepted.casefold()
    return bool(answer == accepted)


def _value(answer: Any) -> Any:
    """What a text stands for, since a gateway's answers are all text."""
    if not isinstance(answer, str):
        return answer
    try:
        return ast.literal_eval(answer.strip())
    except (ValueError, SyntaxError):
        return answer


async def measure(tasks: tuple[BenchTask, ...], answer_of: Answerer) -> list[Result]:
    results = []
    for task in tasks:
        began = time.perf_counter()
        answer = await answer_of(task.text)
        seconds = time.perf_counter() - began
        results.append(Result(task, answer, is_right(answer, task), seconds))
    return results


def report(title: str, results: list[Result]) -> dict[str, float]:
    """Prints the table; returns the rate of each kind and `overall`."""
    print(f"\n{title}")
    for result in results:
        if not result.right:
            print(f"  wrong: {result.task.text} -> {str(result.answer)[:80]!r}")
    rates = {}
    for kind in (*dict.fromkeys(r.task.kind for r in results), "overall"):
        rows = [r for r in results if kind in (r.task.kind, "overall")]
        right = sum(r.right for r in rows)
        rates[kind] = right / len(rows)
        print(f"  {kind:24} {right:3} of {len(rows):3}  {rates[kind]:4.0%}")
    seconds = sorted(r.seconds for r in results)
    print(
        f"  seconds a task: mean {sum(seconds) / len(seconds):.2f}, "
        f"median {seconds[len(seconds) // 2]:.2f}, slowest {seconds[-1]:.2f}"
    )
    return rates


def make_agent_answerer(base_url: str) -> Answerer:
    """Fresh CodeAgents on the server at `base_url`, built as the default agent is."""
    import urllib.request

    from smolagents import ChatMessage, CodeAgent, LogLevel, MessageRole, Model
    from smolagents.monitoring import TokenUsage

    from server.embedded import MODEL
    from server.embedded_prompt import CODE_BLOCK_TAGS, make_prompt_templates, shape_request

    class ShapedModel(Model):  # type: ignore[misc]
        """The least that a CodeAgent needs: bodies through `shape_request`, one POST each."""

        def generate(
            self, messages: list[Any], stop_sequences: list[str] | None = None, **_: Any
        ) -> Any:
            body = self._prepare_completion_kwargs(messages=messages, stop_sequences=stop_sequences)
            request = urllib.request.Request(
                f"{base_url}/chat/completions",
                json.dumps({"model": MODEL, **shape_request(body)}).encode(),
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

    def run(text: str) -> Any:
        agent = CodeAgent(
            tools=[],
            model=ShapedModel(model_id=MODEL),
            prompt_templates=make_prompt_templates(),
            code_block_tags=CODE_BLOCK_TAGS,
            max_steps=3,
            verbosity_level=LogLevel.OFF,
        )
        return agent.run(text)

    return lambda text: asyncio.to_thread(run, text)


def make_gateway_answerer(session: aiohttp.ClientSession, base_url: str, model: str) -> Answerer:
    """Asks a running gateway, not streaming, with the reasoning kept out of the content."""

    async def answer_of(text: str) -> Any:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "reasoning_format": "deepseek",
        }
        async with session.post(f"{base_url}/chat/completions", json=body) as reply:
            answer = await reply.json()
        if reply.status != 200:
            return f"HTTP {reply.status}: {answer}"
        return answer["choices"][0]["message"]["content"]

    return answer_of


async def measure_both(answer_of: Answerer) -> int:
    """0 when the targets are met on TEST, else 1."""
    report(f"DEV, {len(DEV)} tasks", await measure(DEV, answer_of))
    rates = report(f"TEST (held out), {len(TEST)} tasks", await measure(TEST, answer_of))
    missed = {kind: target for kind, target in TARGETS.items() if rates[kind] < target}
    for kind, target in missed.items():
        print(f"below target: {kind} {rates[kind]:.0%}, wanted {target:.0%}")
    return 1 if missed else 0


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", help="a running gateway's, with its /v1")
    parser.add_argument("--model", default="code-writing-agent", help="with --base-url")
    options = parser.parse_args()
    if options.base_url:
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            return await measure_both(
                make_gateway_answerer(session, options.base_url.rstrip("/"), options.model)
            )

    from server.embedded import EmbeddedUpstream

    async with EmbeddedUpstream() as embedded:
        await embedded.wait_ready(60)
        return await measure_both(make_agent_answerer(embedded.base_url))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.exit(asyncio.run(main()))
