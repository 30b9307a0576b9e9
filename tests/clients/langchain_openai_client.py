"""LangChain's ChatOpenAI: prints as JSON what it made of the gateway at $OPENAI_BASE_URL."""

import json

import openai
from langchain_openai import ChatOpenAI

chat = ChatOpenAI(model="code-writing-agent")
reply = chat.invoke("go")
chunks = list(chat.stream("go", stream_usage=True))
last = sum(chunks[1:], chunks[0])


def error(model, call, content):
    try:
        call(ChatOpenAI(model=model), content)
    except openai.APIError as failure:
        return {
            "kind": type(failure).__name__,
            "status": getattr(failure, "status_code", None),
            "message": failure.body["message"],
            "code": failure.code,
        }


print(
    json.dumps(
        {
            "whole": {
                "content": reply.content,
                "tokens": reply.usage_metadata["total_tokens"],
                "finish": reply.response_metadata["finish_reason"],
            },
            "stream": {
                "content": last.content,
                "tokens": last.usage_metadata["total_tokens"],
                "finish": last.response_metadata["finish_reason"],
            },
            "unknown": error("nobody", ChatOpenAI.invoke, "go"),
            "failed": error("code-writing-agent", ChatOpenAI.invoke, "fail"),
            "failed_stream": error(
                "code-writing-agent", lambda model, text: list(model.stream(text)), "fail"
            ),
        }
    )
)
