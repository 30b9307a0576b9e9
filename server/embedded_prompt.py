"""What lets a 135M model answer simple tasks through a CodeAgent: a chat body in, the body really sent out.

The model writes the code; nothing here computes an answer. It is helped in four ways: a short system
prompt instead of the agent's long one, worked examples as chat turns (those of the kind nearest to the
task, in a fixed order so that they stay a cached prefix), a grammar that admits one `final_answer(…)` line,
and literals limited to the numbers and words that the task holds.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

from server.embedded_choice import choose_examples, rank_kinds
from server.embedded_examples import Example
from server.embedded_grammar import make_grammar

CODE_BLOCK_TAGS = "markdown"

SYSTEM_PROMPT = (
    "You are a small assistant, and Python is your only tool. Prefer short and correct answers; answer "
    "plainly where Python is not needed; print only results. Answer each task with one line of Python "
    "that calls final_answer."
)
CHAT_PROMPT = "You are a small, helpful assistant. Answer in one short sentence."

# What smolagents 1.26 puts into its messages and its stop sequences.
TASK_MARK = "New task:\n"
STEP_STOP = "Observation:"

# SmolLM2 was trained on 8192 tokens; a longer conversation is cut to its last part, where the question is.
TASK_CHARACTERS = 2000
HISTORY_TURNS = 2
HISTORY_CHARACTERS = 200

MAX_TOKENS = 120
CHAT_MAX_TOKENS = 256

_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "·": "*"})
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b(?!,\s))")


def _block(code: str, opening: str, closing: str) -> str:
    lines = [f"final_answer({code})"]
    if "math." in code:
        lines.insert(0, "import math")
    return "\n".join([opening, *lines, closing])


def shape_request(body: dict[str, Any]) -> dict[str, Any]:
    """The body to send in place of the one that smolagents made.

    A step of the agent (known by its stop sequence) gets examples and a grammar; the first try is greedy,
    a later one sees two kinds of example, may use any literal, and draws with a seed of its own. Any other
    call (the answer at max_steps, a plan) is a short plain chat about the same task."""
    # smolagents leaves its MessageRole enum in the body, whose str() is not its value.
    turns = [
        (getattr(m["role"], "value", m["role"]), _text(m.get("content"))) for m in body["messages"]
    ]
    stop = body.get("stop") or []
    if STEP_STOP not in stop:
        return _shape_chat(body, turns)
    task_at = max(
        (i for i, (role, text) in enumerate(turns) if role == "user" and TASK_MARK in text),
        default=0,
    )
    question = _question(turns[task_at][1].rpartition(TASK_MARK)[2])
    tries = sum(role == "assistant" for role, _ in turns[task_at + 1 :])
    opening, closing = ("<code>", "</code>") if "</code>" in stop else ("```python", "```")
    examples = choose_examples(question, kinds=2 if tries else 1)
    history = _history(turns[:task_at])

    messages = [_message("system", SYSTEM_PROMPT)]
    for example in (*examples, *history):
        messages.append(_message("user", example.task))
        messages.append(_message("assistant", _block(example.code, opening, closing)))
    messages.append(_message("user", question))
    said = " ".join([*(e.task + " " + e.code for e in history), question])
    return {
        **body,
        "messages": messages,
        "grammar": make_grammar(said, examples, opening, closing, free=tries > 0),
        "temperature": body.get("temperature", min(0.4 * tries, 1.0)),
        "seed": body.get("seed", 0) + tries,
        "max_tokens": min(body.get("max_tokens", MAX_TOKENS), MAX_TOKENS),
        "cache_prompt": True,
    }


def _shape_chat(body: dict[str, Any], turns: list[tuple[str, str]]) -> dict[str, Any]:
    asked = next((text for role, text in reversed(turns) if role == "user"), "")
    question = _question(asked.rpartition(TASK_MARK)[2])
    return {
        **body,
        "messages": [_message("system", CHAT_PROMPT), _message("user", question)],
        "temperature": body.get("temperature", 0.0),
        "max_tokens": min(body.get("max_tokens", CHAT_MAX_TOKENS), CHAT_MAX_TOKENS),
        "cache_prompt": True,
    }


def make_prompt_templates() -> dict[str, Any]:
    """The templates of the agent, complete as smolagents wants them; `shape_request` sends its own prompt."""
    return {
        "system_prompt": SYSTEM_PROMPT,
        "planning": {
            "initial_plan": "{{task}}",
            "update_plan_pre_messages": "{{task}}",
            "update_plan_post_messages": "{{task}}",
        },
        "managed_agent": {"task": "{{task}}", "report": "{{final_answer}}"},
        "final_answer": {"pre_messages": CHAT_PROMPT, "post_messages": "{{task}}"},
    }


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(
        p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str)
    )


def _history(turns: list[tuple[str, str]]) -> list[Example]:
    """The last earlier turns of the conversation in the examples' form, shortened."""
    said = [(role, text) for role, text in turns if role in {"user", "assistant"}]
    pairs = [
        (asked.rpartition(TASK_MARK)[2], reply)
        for (role, asked), (next_role, reply) in pairwise(said)
        if role == "user" and next_role == "assistant"
    ]
    return [
        Example(asked.strip()[-HISTORY_CHARACTERS:], json.dumps(reply.strip()[:HISTORY_CHARACTERS]))
        for asked, reply in pairs[-HISTORY_TURNS:]
    ]


def _question(task: str) -> str:
    """The task's last paragraphs, as few as are as telling as the whole; signs that Python writes otherwise replaced."""
    text = task.strip()[-TASK_CHARACTERS:].translate(_SIGNS)
    text = _THOUSANDS.sub("", text)
    paragraphs = [p.strip() for p in text.split("\n\n") if p.strip()]
    enough = 0.8 * rank_kinds(text)[0][0]
    for start in range(len(paragraphs) - 1, 0, -1):
        tail = "\n\n".join(paragraphs[start:])
        if rank_kinds(tail)[0][0] >= enough:
            return tail
    return text or "Hello"
