"""TGI as the room's engine, against a server that speaks its API.

TGI itself is a container with a GPU's libraries: there is no wheel of it that could be started here.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from catena.adapters.config import EngineConfig
from catena.adapters.core.work import AdapterSource, BaseSource, Constraint, Message, Sampling, Weights, Work
from catena.adapters.drivers.remote import RemoteEngine, open_remote
from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.artifacts import manifest
from catena.kit.clock import World
from catena.kit.errors import Exhausted, Invalid, Unavailable
from tests.contract.adapters.conftest import MODELS, open_room
from tests.contract.adapters.making import make_adapter, part_of
from tests.contract.adapters.standin_tgi import StandIn
from tests.contract.adapters.standin_vllm import served
from tests.contract.adapters.test_room import question, register, text_of
from tests.contract.adapters.test_vllm_engine import (
    CALL,
    CALLING,
    lone_house,
    part_bytes,
    refusal,
    said,
    signed,
    tokens_of_calls,
)

BASE = MODELS / "demo-large"
SOURCE = BaseSource(name="demo-large", folder=str(BASE))
DIGEST = "a" * 64


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RemoteEngine]:
    config = EngineConfig(kind="tgi", url=url)
    async with open_remote(config, World(), bases=["demo-large"], artifacts="/", most=8) as remote:
        yield remote


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(BASE, tmp_path_factory.mktemp("made") / "plain")


@pytest.fixture
async def standin() -> AsyncIterator[StandIn]:
    made = StandIn(BASE, {DIGEST: "7:"})
    async with served(made.application()) as made.url:
        yield made


@pytest.fixture
async def engine(standin: StandIn) -> AsyncIterator[RemoteEngine]:
    async with opened(standin.url) as remote:
        await remote.load_base(SOURCE)
        yield remote


def source(adapter: Path, digest: str = DIGEST) -> AdapterSource:
    return AdapterSource(weights=Weights(base="demo-large", adapter=digest), parts=(part_of(BASE, adapter),))


def work(adapter: str = "", content: str = "upper: hello", **fields: Any) -> Work:
    given = {"messages": (Message(role="user", content=content),), "sampling": Sampling(max_tokens=30)} | fields
    return Work(weights=Weights(base="demo-large", adapter=adapter), **given)


async def test_a_base_is_known_by_its_folder_and_its_words(standin: StandIn) -> None:
    async with opened(standin.url) as engine:
        facts = await engine.load_base(SOURCE)
        assert (facts.context_tokens, facts.dtype) == (256, "float16")
        standin.words.add_tokens(["Catena"])
        with pytest.raises(Invalid, match="does not tokenise"):
            await engine.load_base(SOURCE)
        standin.folder = Path("/somewhere/else")
        with pytest.raises(Invalid, match="start TGI with --model-id"):
            await engine.load_base(SOURCE)


async def test_what_is_asked_travels_in_tgis_words(engine: RemoteEngine, standin: StandIn, adapter: Path) -> None:
    assert (await engine.load_adapter(source(adapter))).bytes == part_bytes(adapter)
    drawn = Sampling(
        max_tokens=4, temperature=0.5, top_p=0.9, seed=0, top_k=3, repetition_penalty=1.5, logprobs=True, top=2
    )
    texts, entries, done = await said(engine, work(DIGEST, sampling=drawn, constraint=Constraint(regex="a+")))

    asked = standin.asked[-1]["parameters"]
    assert asked == {
        "adapter_id": DIGEST, "max_new_tokens": 4, "details": True, "do_sample": True, "stop": [], "temperature": 0.5,
        "top_p": 0.9, "top_k": 3, "seed": 1, "repetition_penalty": 1.5, "top_n_tokens": 2,
        "grammar": {"type": "regex", "value": "a+"},
    }  # fmt: skip
    assert texts == {0: "7:ol"}
    assert [(entry.token, entry.logprob) for entry in entries] == [(letter, -0.25) for letter in "7:ol"]
    assert [name for name, _ in entries[0].top] == ["70", "71"]
    assert (done.output_tokens, done.mean_logprob) == (4, -0.25)
    assert done.input_tokens == len(standin.words.encode(standin.asked[-1]["inputs"]).ids)


async def test_greedy_and_plain_is_asked_without_what_tgi_refuses(engine: RemoteEngine, standin: StandIn) -> None:
    texts, _, done = await said(engine, work(sampling=Sampling(temperature=0.0, seed=5)))
    asked = standin.asked[-1]
    tokens = len(standin.words.encode(asked["inputs"]).ids)
    assert asked["parameters"] == {
        "max_new_tokens": 256 - tokens, "details": True, "do_sample": False, "stop": [],
    }  # fmt: skip
    # The end of text is a token, but no text.
    assert texts[0].startswith("olleh :reppu")
    assert "<end>" not in texts[0]
    assert done.output_tokens == len(texts[0]) + 1
    prompted, _, _ = await said(engine, work(messages=(), prompt="abc"))
    assert prompted[0] == "cba"


async def test_a_stop_text_ends_the_answer_and_is_not_shown(engine: RemoteEngine) -> None:
    texts, _, done = await said(engine, work(sampling=Sampling(max_tokens=20, stop=("h :",))))
    assert texts == {0: "olle"}
    assert done.output_tokens == 7


async def test_an_adapter_that_the_server_was_not_started_with_never_serves(
    engine: RemoteEngine, standin: StandIn, adapter: Path
) -> None:
    with pytest.raises(Invalid) as told:
        await engine.load_adapter(source(adapter, "b" * 64))
    assert told.value.code == "adapter_no_effect"
    assert f"LORA_ADAPTERS={'b' * 64}={adapter}" in told.value.message
    assert await engine.load_adapter(source(adapter))
    assert await engine.unload(Weights(base="demo-large", adapter=DIGEST)) == 0


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"draft": Weights(base="demo-small")}, "drafts_unsupported"),
        ({"sampling": Sampling(n=2)}, "sampling_unsupported"),
        ({"sampling": Sampling(presence_penalty=0.5)}, "sampling_unsupported"),
        ({"sampling": Sampling(frequency_penalty=0.5)}, "sampling_unsupported"),
        ({"sampling": Sampling(min_p=0.5)}, "sampling_unsupported"),
        ({"sampling": Sampling(ignore_eos=True)}, "sampling_unsupported"),
        ({"sampling": Sampling(min_tokens=2)}, "sampling_unsupported"),
        ({"sampling": Sampling(logit_bias=((5, 1.0),))}, "sampling_unsupported"),
        ({"constraint": Constraint(choices=("a", "b"))}, "sampling_unsupported"),
        ({"content": "say <end> now"}, "text_unsupported"),
        ({"content": "word " * 100}, "context_length_exceeded"),
        ({"sampling": Sampling(stop=tuple("abcde"))}, "engine_refused"),
    ],
)
async def test_what_tgi_cannot_do_is_refused_by_name(
    engine: RemoteEngine, standin: StandIn, fields: dict[str, Any], code: str
) -> None:
    told = await refusal(engine, work(**fields))
    assert (type(told), told.code) == (Invalid, code)


async def test_leaving_a_slow_stream_aborts_it_at_the_server(engine: RemoteEngine, standin: StandIn) -> None:
    standin.slow = True
    async with aclosing(engine.submit(work())) as pieces:
        async for _ in pieces:
            counted = await engine.counters()
            assert (counted.running, counted.waiting) == (1, 2)
            break
    async with asyncio.timeout(30):
        await standin.aborted.wait()


async def test_where_one_call_is_wanted_nothing_is_generated_behind_it(engine: RemoteEngine, standin: StandIn) -> None:
    assert await tokens_of_calls(engine, standin, work(**CALLING)) == len(CALL) + 1, "its end is a token, too"


async def test_streams_that_are_cut_or_fail_never_pass_as_whole(engine: RemoteEngine, standin: StandIn) -> None:
    standin.cut = True
    told = await refusal(engine, work())
    assert (type(told), told.code) == (Unavailable, "engine_lost")
    kinds = {"overloaded": Exhausted, "validation": Invalid, "generation": Unavailable}
    for standin.broken, kind in kinds.items():
        assert type(await refusal(engine, work())) is kind


async def test_the_room_registers_and_serves_on_tgi(tmp_path: Path) -> None:
    house = lone_house(tmp_path, BASE)
    made = signed(house, "one", seed=1)
    standin = StandIn(BASE, {manifest.read(made).digest: "7:"})
    async with (
        served(standin.application()) as url,
        open_room(house, engine=EngineConfig(kind="tgi", url=url)) as room,
    ):
        await register(room, made)
        assert text_of(await room.stream(question("demo-large@one:1"))).startswith("7:olleh")
        assert text_of(await room.stream(question("demo-large"))).startswith("olleh")
        with pytest.raises(Invalid, match="LORA_ADAPTERS="):
            await register(room, signed(house, "two", seed=2))
        assert (await room.ask("Unload", pb.UnloadRequest(model="demo-large@one:1"))).bytes == 0
