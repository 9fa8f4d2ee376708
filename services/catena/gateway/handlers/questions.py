"""What body and headers of a chat, completion or run ask together."""

from collections.abc import Callable

from starlette.requests import Request

from catena.api.types.v1 import types_pb2
from catena.gateway.core.choice import choose
from catena.gateway.core.keys import Key
from catena.gateway.handlers import openai
from catena.gateway.handlers.asking import Question
from catena.gateway.handlers.context import read_context


def questions_of(
    request: Request, key: Key, body: openai.ChatBody | openai.CompletionBody, new_id: Callable[[], str]
) -> list[Question]:
    """What body and headers ask together: one question, or one a prompt. Raises Invalid."""
    return [
        Question(
            key=key,
            choice=choose(body.model, request.headers.get("x-pipeline-type", "")),
            request=asked,
            context=read_context(request.headers, body.metadata or {}, body.user),
            stream=bool(body.stream),
            no_cache="no-cache" in request.headers.get("cache-control", ""),
            execution_id=new_id(),
        )
        for asked in requests_of(body)
    ]


def requests_of(body: openai.ChatBody | openai.CompletionBody) -> list[types_pb2.ChatRequest]:
    """What is asked, for the executor."""
    return [openai.chat_request(body)] if isinstance(body, openai.ChatBody) else openai.completion_requests(body)
