"""smolagents' own OpenAIModel: an agent whose model is an agent. Prints JSON, for $OPENAI_BASE_URL."""

import json
import os

from smolagents import ChatMessage, CodeAgent, MessageRole, OpenAIModel


def model_of(name):
    return OpenAIModel(name, api_base=os.environ["OPENAI_BASE_URL"], api_key="none")


def ask(content):
    return [ChatMessage(role=MessageRole.USER, content=content)]


def error(name, content):
    try:
        model_of(name).generate(ask(content))
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is told
        return {"kind": type(failure).__name__, "status": getattr(failure, "status_code", None)}


model = model_of("code-writing-agent")
reply = model.generate(ask("go"))
pieces = list(model.generate_stream(ask("go")))
tokens = [piece.token_usage for piece in pieces if piece.token_usage is not None]
agent = CodeAgent(tools=[], model=model, verbosity_level=0, max_steps=2)
streaming = CodeAgent(tools=[], model=model, verbosity_level=0, max_steps=2, stream_outputs=True)

print(
    json.dumps(
        {
            "whole": {
                "content": reply.content,
                "tokens": reply.token_usage.input_tokens + reply.token_usage.output_tokens,
            },
            "stream": {
                "content": "".join(piece.content or "" for piece in pieces),
                "tokens": sum(usage.input_tokens + usage.output_tokens for usage in tokens),
            },
            "agent": agent.run("be the outer agent"),
            "agent_streaming": streaming.run("be the outer agent"),
            "unknown": error("nobody", "go"),
            "failed": error("code-writing-agent", "fail"),
        }
    )
)
