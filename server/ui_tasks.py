"""The errands of web UIs, told apart from what people ask: titles, tags, follow-up questions and their like.

In: a request for an agent. Out: whether the upstream's model alone should answer it. Open WebUI sends them as
one user message that begins with `### Task:`, around the conversation in question; so begins, too, the
question of a person whose documents it searched, which is none of them. HF chat-ui has a system prompt.
"""

import re
from typing import Any

from server.chat_schema import ChatRequest

TASK = re.compile(r"\s*### Task:\s*(?P<line>[^\n]*)")
# Open WebUI's default for a question with documents, "Respond to the user query using the provided context".
A_PERSONS_OWN = re.compile(r"respond to the user", re.IGNORECASE)
AN_ERRAND = re.compile(
    r"\b(titles?|tags?|follow-?ups?|search queries|autocompletion|chat history)\b", re.IGNORECASE
)
HISTORY = "<chat_history>"
TITLING = (
    "You are a chat thread titling assistant.",
    "You are a summarization AI. You'll never answer a user's question directly",
)


def is_ui_task(request: ChatRequest) -> bool:
    """Whether a UI asks this on its own account."""
    if request.tools or not request.messages:
        return False
    if any(_text(message.content).startswith(TITLING) for message in request.messages[:1]):
        return True
    asked = [_text(message.content) for message in request.messages if message.role != "system"]
    if len(asked) != 1 or (found := TASK.match(asked[0])) is None:
        return False
    line = found["line"]
    if A_PERSONS_OWN.match(line):
        return False
    return HISTORY in asked[0] or AN_ERRAND.search(line) is not None


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content or ""
