"""What OpenAI or vLLM serves and Catena does not is refused by name."""

from typing import Any

import msgspec
import pytest

from catena.gateway.handlers.openai import ChatBody, CompletionBody, chat_request, completion_requests
from catena.gateway.handlers.unserved import CURES, NOTHING
from catena.kit.errors import Invalid


def chat(**more: Any) -> ChatBody:
    body = {"model": "base", "messages": [{"role": "user", "content": "hello"}], **more}
    return msgspec.convert(body, ChatBody)


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("guided_choice", ["yes", "no"], "structured_outputs"),
        ("guided_regex", "[a-z]+", "structured_outputs"),
        ("guided_json", {"type": "object"}, "structured_outputs"),
        ("stop_token_ids", [7], "`stop`"),
        ("bad_words", ["no"], "logit_bias"),
        ("allowed_token_ids", [1, 2], "logit_bias"),
        ("prompt_logprobs", 0, "logprobs"),
        ("functions", [{"name": "f"}], "`tools`"),
        ("function_call", "auto", "tool_choice"),
        ("web_search_options", {}, "search"),
        ("modalities", ["text", "audio"], "text"),
    ],
)
def test_a_parameter_that_would_alter_the_answer_is_refused_with_its_cure(name: str, value: Any, cure: str) -> None:
    with pytest.raises(Invalid, match=f"`{name}`.*{cure}") as told:
        chat_request(chat(**{name: value}))
    assert told.value.code == "bad_parameter"
    completion = msgspec.convert({"model": "base", "prompt": "a", name: value}, CompletionBody)
    with pytest.raises(Invalid, match=name):
        completion_requests(completion)


def test_one_that_asks_for_nothing_is_let_pass() -> None:
    for name in CURES:
        for value in (None, getattr(NOTHING, name)):
            assert chat_request(chat(**{name: value})).messages[0].content == "hello"
