"""Requests survive the wire: what the gateway says is what the adapters hear."""

import json

import pytest

from catena.api.executor.v1 import executor_pb2
from catena.api.types.v1 import types_pb2 as pb
from catena.executor.core.catalogue import Model
from catena.executor.core.chat import ChatRequest, Message, Sampling
from catena.executor.handlers.chat import chat_from, chat_to
from catena.executor.handlers.wire import model_from, model_to
from catena.kit.errors import Invalid

HELLO = (Message(role="user", content="hi"),)


@pytest.mark.parametrize(
    "asked",
    [
        ChatRequest(messages=HELLO),
        ChatRequest(prompt="go", regex="[0-9]+"),
        ChatRequest(messages=HELLO, choices=("yes", "no")),
        ChatRequest(messages=HELLO, json_schema={}),
        ChatRequest(
            messages=HELLO,
            sampling=Sampling(
                top_k=40, min_p=0.05, repetition_penalty=1.1, logit_bias=((3, -100.0), (9, 2.5)), temperature=0.0
            ),
        ),
        ChatRequest(prompt="go", sampling=Sampling(ignore_eos=True, min_tokens=7)),
    ],
    ids=["plain", "regex", "choices", "any JSON", "sampling", "length"],
)
def test_requests_come_back_as_they_went(asked: ChatRequest) -> None:
    sent = pb.ChatRequest.FromString(chat_to(asked).SerializeToString())

    assert chat_from(sent) == asked


def test_a_schema_keeps_the_order_of_its_properties() -> None:
    names = ["zeta", "alpha", "mid", "beta", "omega"]
    schema = {"type": "object", "properties": {name: {"maxLength": 3} for name in names}}

    sent = pb.ChatRequest.FromString(chat_to(ChatRequest(messages=HELLO, json_schema=schema)).SerializeToString())
    again = chat_from(sent)

    assert list(json.loads(sent.json_schema_text)["properties"]) == names
    assert again.json_schema == schema
    assert again.json_schema is not None
    assert list(again.json_schema["properties"]) == names


def test_a_schema_given_as_a_struct_is_understood_too() -> None:
    asked = pb.ChatRequest(prompt="go")
    asked.json_schema.update({"type": "string", "maxLength": 3})

    assert chat_from(asked).json_schema == {"type": "string", "maxLength": 3}


def test_a_schema_that_is_no_json_is_refused() -> None:
    with pytest.raises(Invalid) as caught:
        chat_from(pb.ChatRequest(prompt="go", json_schema_text="[1]"))

    assert caught.value.code == "bad_schema"


@pytest.mark.parametrize("price", [None, 0.0, 0.5])
def test_a_model_comes_back_as_it_went_and_a_price_of_nothing_is_no_missing_price(price: float | None) -> None:
    model = Model(
        name="m",
        provider="anthropic",
        price_input=3.0,
        price_output=15.0,
        price_cached_input=price,
        price_cache_write=price,
        price_reasoning=price,
        context_tokens=200_000,
        capabilities=("tools",),
        version="2",
        fallbacks=("a", "b"),
        requests_per_minute=60.0,
        tokens_per_minute=1e6,
        at_once=8,
    )
    assert model_from(executor_pb2.Model.FromString(model_to(model).SerializeToString())) == model
