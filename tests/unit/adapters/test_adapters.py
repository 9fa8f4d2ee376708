import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from catena.adapters.core.adapters import Adapters
from catena.adapters.core.asking import Answered, Question
from catena.adapters.core.encoding import Encoding, WrongKind
from catena.adapters.core.errors import AdapterWithdrawn, BadModel, UnknownAdapter, UnknownModel
from catena.adapters.core.manner import Manner
from catena.adapters.core.resident import Budget
from catena.adapters.core.work import Message, Piece, Sampling, Weights
from catena.kit.clock import ManualClock, still_world
from catena.kit.errors import Invalid, Unavailable
from tests.unit.adapters.fakes import FakeBases, FakeEngine, FakeGate, FakeRegistry, record

HELLO = (Message(role="user", content="hello"),)


class Bench:
    def __init__(self, *names: str, base_budget_bytes: int = 0) -> None:
        self.free: int | None = None
        self.clock = ManualClock()
        self.engine, self.gate, self.registry = FakeEngine(), FakeGate(), FakeRegistry(*names)
        self.adapters = Adapters(
            engine=self.engine,
            registry=self.registry,
            bases=FakeBases(),
            gate=self.gate,
            world=replace(still_world(), clock=self.clock),
            manner=Manner(
                budget=Budget(bytes=1000, count=10),
                base_budget_bytes=base_budget_bytes,
                workflows={"writing": ("a",)},
            ),
            free=lambda: self.free,
        )

    async def ask(self, model: str, **fields: object) -> tuple[str, Answered]:
        text = ""
        question = Question(model=model, messages=HELLO, **fields)  # type: ignore[arg-type]
        async with aclosing(self.adapters.generate("acme", question)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Answered):
                    return text, piece
                text += piece.text
        raise AssertionError("no end")


async def test_the_weights_that_were_asked_for_answer() -> None:
    bench = Bench("code")

    base, base_end = await bench.ask("base")
    code, code_end = await bench.ask("base@code")

    assert (base, base_end.model) == ("base", f"base#{'b' * 64}")
    assert (code, code_end.model) == ("digest-code", "base@code:1#digest-code")
    assert bench.gate.checked == ["code"]


async def test_the_end_tells_how_long_the_answer_waited_for_its_weights() -> None:
    bench = Bench("code")
    bench.engine.on_load = lambda weights: bench.clock.advance(0.25)

    _, cold = await bench.ask("base@code")
    _, warm = await bench.ask("base@code")

    assert (cold.load_ms, warm.load_ms) == (pytest.approx(250.0), 0.0)


async def test_a_missing_adapter_is_never_answered_by_its_base() -> None:
    bench = Bench("code")
    bench.registry.records["old"] = record("old", status="withdrawn")

    for model, error in (("base@none", UnknownAdapter), ("none", UnknownModel), ("base@old", AdapterWithdrawn)):
        with pytest.raises(error):
            await bench.ask(model)

    assert bench.engine.works == []


async def test_a_composition_is_one_resident_made_of_its_parts() -> None:
    bench = Bench("a", "b")

    one, end = await bench.ask("base@{a=0.7,b=0.3}")
    other, _ = await bench.ask("base@{a=0.3,b=0.7}")

    assert one != other
    assert end.model.startswith("base@{a:1=0.7,b:1=0.3}#")
    assert [resident.bytes for resident in bench.adapters.residency.residents()] == [200, 200]


async def test_a_draft_is_made_resident_too() -> None:
    bench = Bench("a", "b")

    await bench.ask("base@a", draft_model="base@b")

    assert bench.engine.works[0].draft == Weights(base="base", adapter="digest-b")
    assert bench.engine.works[0].draft_tokens == 5


async def test_closing_a_stream_lets_its_adapter_go() -> None:
    bench = Bench("a")
    bench.engine.answering.clear()
    pieces = bench.adapters.generate("acme", Question(model="base@a", messages=HELLO))
    assert isinstance(await anext(pieces), Piece)
    assert bench.adapters.residency.residents()[0].users == 1

    await pieces.aclose()

    assert bench.adapters.residency.residents()[0].users == 0


async def test_without_a_seed_the_world_draws_one_and_a_given_one_stays() -> None:
    bench = Bench()

    await bench.ask("base")
    await bench.ask("base")
    await bench.ask("base", sampling=Sampling(seed=7))

    seeds = [work.sampling.seed for work in bench.engine.works]
    assert seeds[0] != seeds[1]
    assert seeds[2] == 7


async def test_a_base_is_loaded_once_for_all_and_again_after_a_loss() -> None:
    bench = Bench()

    await asyncio.gather(*(bench.ask("base") for _ in range(4)))
    bench.adapters.lost()
    await bench.ask("base")

    assert bench.engine.bases == ["base", "base"]


async def test_registering_proves_the_adapter_on_the_engine_before_it_counts() -> None:
    bench = Bench()
    bench.engine.failure = Invalid("no effect", code="adapter_no_effect")

    with pytest.raises(Invalid):
        await bench.adapters.register("acme", Path("/idle"))
    assert bench.registry.records == {}

    await bench.adapters.register("acme", Path("/good"))
    assert list(bench.registry.records) == ["good"]
    assert bench.engine.loaded == [Weights(base="base", adapter="digest-good")]


async def test_a_withdrawn_adapter_leaves_the_device() -> None:
    bench = Bench("a")
    await bench.ask("base@a")

    await bench.adapters.withdraw("acme", "base@a:1", "worse")

    assert bench.engine.loaded == []
    with pytest.raises(AdapterWithdrawn):
        await bench.ask("base@a")


async def test_uses_and_changes_are_written_down_once() -> None:
    bench = Bench("a")
    for _ in range(3):
        await bench.ask("base@a")

    await bench.adapters.write_books()
    await bench.adapters.write_books()

    assert [(use.name, count) for use, count in bench.registry.uses.items()] == [("a", 3)]
    assert bench.registry.told == [("base@a:1", "device")]


async def test_warming_goes_on_past_a_failure() -> None:
    bench = Bench()
    bench.registry.records["bad"] = record("bad", pinned=True)
    bench.registry.records["good"] = record("good", pinned=True)
    bench.engine.failure = Invalid("tampered", code="adapter_tampered")

    failures = await bench.adapters.warm()

    assert [failure.code for failure in failures] == ["adapter_tampered"]
    assert [(r.model, r.pinned) for r in bench.adapters.residency.residents()] == [("base@good:1", True)]


async def test_when_memory_runs_out_only_what_is_pinned_or_used_stays() -> None:
    bench = Bench("a", "b")
    bench.registry.records["pin"] = record("pin", pinned=True)
    for name in ("a", "b", "pin"):
        await bench.ask(f"base@{name}")
    await bench.adapters.tend()
    assert (bench.adapters.pressure.level, len(bench.engine.loaded)) == ("low", 3)

    bench.free = 0
    await bench.adapters.tend()

    assert bench.adapters.pressure.level == "critical"
    assert [weights.adapter for weights in bench.engine.loaded] == ["digest-pin"]


async def test_what_a_user_asks_for_next_is_there_before_it_is_asked_for() -> None:
    bench = Bench("a", "b")
    for _ in range(4):
        await bench.ask("base@a", user="ann")
        await bench.ask("base@b", user="ann")
    await bench.adapters.tend()
    await bench.adapters.unload("acme", "base@b")

    await bench.ask("base@a", user="ann")
    ahead = await bench.adapters.tend()

    assert [(one.model, one.resident) for one in ahead] == [("base@b", True)]
    assert bench.adapters.residency.preloads == 1
    assert Weights(base="base", adapter="digest-b") in bench.engine.loaded


async def test_no_base_is_loaded_ahead_where_another_might_have_to_leave_for_it() -> None:
    bench, free = Bench("a", base_budget_bytes=5000), Bench("a")

    ahead = [await one.adapters.preloading.load_workflow("acme", "writing", "base") for one in (bench, free)]

    assert [len(found) for found in ahead] == [1, 1]
    assert (bench.engine.bases, free.engine.bases) == ([], ["base"])


async def test_who_fails_midway_holds_no_base_while_another_answers_in_its_place() -> None:
    bench = Bench("code", "general", base_budget_bytes=5000)
    await bench.adapters.names.declare("acme", "base@code", ["base@general"])
    bench.engine.failure = Invalid("tampered", code="adapter_tampered")

    await bench.ask("base@code")

    assert await bench.adapters.unload("acme", "base") == 1000
    assert bench.engine.loaded == []


async def test_a_declared_fallback_answers_and_the_end_says_so() -> None:
    bench = Bench("general")
    names = bench.adapters.names
    await names.declare("acme", "base@code", ["base@also-gone", "base@general", "base"])

    text, end = await bench.ask("base@code")

    assert (text, end.served) == ("digest-general", "fallback")
    assert end.model == "base@general:1#digest-general"
    assert end.reason == "base@code cannot answer: no adapter code"
    await names.declare("acme", "base@code", [])
    with pytest.raises(UnknownAdapter):
        await bench.ask("base@code")


async def test_when_no_fallback_can_answer_the_first_failure_is_told() -> None:
    bench = Bench()
    await bench.adapters.names.declare("acme", "base@code", ["base@b"])

    with pytest.raises(UnknownAdapter, match="code"):
        await bench.ask("base@code")


async def test_a_refused_adapter_is_stood_in_for_but_a_lost_engine_is_not() -> None:
    bench = Bench("code", "general")
    await bench.adapters.names.declare("acme", "base@code", ["base@general"])

    bench.engine.failure = Unavailable("lost", code="engine_lost")
    with pytest.raises(Unavailable):
        await bench.ask("base@code")
    bench.engine.failure = Invalid("tampered", code="adapter_tampered")
    _, end = await bench.ask("base@code")

    assert end.served == "fallback"
    assert bench.adapters.residency.residents()[0].users == 0


@pytest.mark.parametrize(
    "stand_ins", [["base@code"], ["base@code:stable"], ["@"], ["base"] * 9], ids=["itself", "tagged", "bad", "many"]
)
async def test_a_fallback_that_cannot_be_is_refused_when_it_is_declared(stand_ins: list[str]) -> None:
    with pytest.raises(BadModel):
        await Bench().adapters.names.declare("acme", "base@code", stand_ins)


async def test_auto_means_the_best_stable_adapter_for_the_task() -> None:
    bench = Bench()
    bench.registry.records = {
        "a": record("a", tasks=("code",), metrics={"accuracy": 0.7}),
        "b": record("b", tasks=("code",), metrics={"accuracy": 0.9}),
    }

    text, end = await bench.ask("base@auto", task="code")

    assert (text, end.served) == ("digest-b", "auto")
    assert end.reason == "best of 2 for 'code': accuracy 0.9"


@pytest.mark.parametrize("task", ["", "poems"])
async def test_auto_is_the_base_where_no_adapter_is_for_the_task_and_says_so(task: str) -> None:
    text, end = await Bench("code").ask("base@auto", task=task)

    assert (text, end.served) == ("base", "auto-base")
    assert end.reason.endswith("the base answered")


async def test_what_was_asked_for_is_said_to_be_that() -> None:
    _, end = await Bench("code").ask("base@code", task="poems")

    assert (end.served, end.reason) == ("asked", "")


async def test_no_adapter_may_be_called_auto() -> None:
    bench = Bench()

    with pytest.raises(Invalid, match="another name"):
        await bench.adapters.register("acme", Path("/auto"))

    assert bench.registry.records == {}


async def test_an_encoder_is_loaded_with_its_first_question() -> None:
    bench = Bench()
    for _ in range(2):
        asked = Encoding(base="encoder", texts=("a", "b"))
        encoded, model = await bench.adapters.encoders.encode(asked, "classification")
    assert (len(encoded.found), model, bench.engine.bases) == (2, f"encoder#{'b' * 64}", ["encoder"])


async def test_each_kind_of_base_is_asked_what_it_can_do() -> None:
    bench = Bench("code")
    encode = bench.adapters.encoders.encode
    with pytest.raises(WrongKind, match=r"base is of type chat, which generates text.* of type embedding"):
        await encode(Encoding(base="base", texts=("a",)), "embedding")
    with pytest.raises(WrongKind, match="labels texts"):
        await encode(Encoding(base="encoder", texts=("a",)), "embedding")
    with pytest.raises(BadModel, match="take no adapters"):
        await encode(Encoding(base="encoder@x", texts=("a",)), "classification")
    with pytest.raises(WrongKind, match=r"encoder is of type classification.* of type chat"):
        await bench.ask("encoder")
    with pytest.raises(WrongKind):
        await bench.ask("base", draft_model="encoder")
    assert bench.engine.works == []
    assert "encoder" not in bench.engine.bases
