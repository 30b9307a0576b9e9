"""Which worked examples a task is shown: a question in, the nearest kind's examples out, by word overlap."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import pairwise

from server.embedded_examples import EXAMPLES, Example

# Below this no example is like the task (greetings unheard of, free questions): it is taken for plain talk.
LEAST_LIKENESS = 2.0
FALLBACK_KIND = "fact"

_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|\*\*|//|[^\w\s]")


def _shape(token: str) -> str:
    if token[0].isdigit():
        return "#"
    return (
        "<letter>" if len(token) == 1 and token.isalpha() and token not in "aAI" else token.lower()
    )


def _features(text: str) -> set[str]:
    """Words with all numbers and all single letters alike, neighbouring pairs, and how many numbers there are."""
    words = [_shape(t) for t in _TOKEN.findall(text) if t not in {".", "?", ",", ":"}]
    ends = ["^", *words, "$"]
    pairs = {f"{a} {b}" for a, b in pairwise(ends)}
    return {*words, *pairs, f"numbers: {min(words.count('#'), 3)}"}


@cache
def _index() -> tuple[tuple[str, tuple[set[str], ...]], ...]:
    return tuple((kind, tuple(_features(e.task) for e in es)) for kind, es in EXAMPLES.items())


@cache
def _weights() -> Mapping[str, float]:
    kinds = [set().union(*features) for _, features in _index()]
    seen = Counter(f for kind in kinds for f in kind)
    return {f: math.log(1 + len(kinds) / n) for f, n in seen.items()}


def rank_kinds(question: str) -> list[tuple[float, str]]:
    """Kinds of task by the word overlap of their nearest examples with the question, nearest first."""
    asked, weights = _features(question), _weights()

    def likeness(features: set[str]) -> float:
        shared = sum(weights[f] for f in features & asked)
        same_count = any(f.startswith("numbers: ") for f in features & asked)
        return (1.0 if same_count else 0.7) * shared / math.sqrt(sum(weights[f] for f in features))

    rows = []
    for kind, examples in _index():
        best = sorted((likeness(features) for features in examples), reverse=True)
        rows.append((best[0] + 0.3 * best[1], kind))
    return sorted(rows, key=lambda row: -row[0])


def choose_examples(question: str, kinds: int = 1) -> list[Example]:
    """All examples of the nearest kind, in a fixed order so that they stay a cached prefix.

    With more kinds, those of the less likely ones come first: what stands last is copied most."""
    ranked = rank_kinds(question)
    names = (
        [kind for _, kind in ranked[:kinds]] if ranked[0][0] >= LEAST_LIKENESS else [FALLBACK_KIND]
    )
    return [example for name in reversed(names) for example in EXAMPLES[name]]
