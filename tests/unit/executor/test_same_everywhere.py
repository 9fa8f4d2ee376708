"""What holds inside every strategy: tools, images, constraints, retrieval, streams, budgets, deadlines, cancelling.

Each way is one course that a strategy can take, each test one property; the table is their product.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest

from catena.executor.core.chat import ChatRequest, Context, Delta, Image, Message, Tool, ToolCall
from catena.executor.core.ports import Ask
from catena.kit.clock import ManualClock, still_world
from catena.kit.errors import Invalid
from catena.kit.testing import eventually
from catena.plan.model import Plan, Role, Shape
from tests.unit.executor.fakes import Answer, Bed, Tools, bed, members, plan, stage

Script = Callable[[Answer], dict[str, list[Answer]]]


@dataclass(frozen=True)
class Way:
    """`plan` ends with the answer of `speaker` when the models say what `script` makes of that answer.

    `live`: the answer streams while it is made. `guard`: what a model says of a draft that it has to patch.
    """

    name: str
    plan: Plan
    script: Script
    speaker: str = "large"
    live: bool = True
    patches: bool = False

    def bed(self, answer: Answer, **more: Any) -> Bed:
        return bed(**more, **self.script(answer))


def marked(answer: Answer) -> Answer:
    """As models that search mark their answers."""
    return f"<answer>{answer}</answer>" if isinstance(answer, str) else answer


MAIN = stage(Role.MAIN, "large")
CHAIN = (stage(Role.MAIN, "small", name="first"), MAIN)
FAST, SECOND = stage(Role.FAST, "small"), stage(Role.FAST, "third", name="fast-2")
CHECKS = ("truncation", "refusal", "schema", "agreement")
WAYS = [
    Way("one model", plan(Shape.SEQUENTIAL, MAIN), lambda said: {"large": [said]}),
    Way("a chain", plan(Shape.SEQUENTIAL, *CHAIN), lambda said: {"small": ["rough"], "large": [said]}),
    Way(
        "draft and refine",
        plan(Shape.DRAFT_REFINE, stage(Role.DRAFT, "small"), MAIN),
        lambda said: {"small": ["rough"], "large": [said]},
    ),
    Way(
        "a fast answer",
        plan(Shape.CASCADE, FAST, MAIN),
        lambda said: {"small": [said], "large": ["never"]},
        speaker="small",
        live=False,
    ),
    Way(
        "a fast answer that passes by its beginning",
        plan(Shape.CASCADE, FAST, MAIN, checks=()),
        lambda said: {"small": [said], "large": ["never"]},
        speaker="small",
    ),
    Way(
        "two fast ones that agree",
        plan(Shape.CASCADE, FAST, SECOND, MAIN, checks=CHECKS),
        lambda said: {"small": [said], "third": [said], "large": ["never"]},
        speaker="small",
        live=False,
    ),
    Way(
        "a strong answer after a refusal",
        plan(Shape.CASCADE, FAST, MAIN),
        lambda said: {"small": ["I cannot"], "large": [said]},
    ),
    Way(
        "a vote",
        plan(Shape.CONSENSUS, *members("small", "large", "third")),
        lambda said: {"small": [said], "large": [said], "third": [said]},
        speaker="small",
        live=False,
    ),
    Way(
        "lossless speculation",
        plan(Shape.SPECULATIVE, stage(Role.DRAFT, "small"), MAIN),
        lambda said: {"large": [said]},
    ),
    Way(
        "a patched draft",
        plan(Shape.SPECULATIVE, stage(Role.DRAFT, "third"), MAIN),
        lambda said: {"third": [said], "large": [judged(said)]},
        speaker="third",
        live=False,
        patches=True,
    ),
    Way(
        "a search",
        plan(Shape.SEARCH, MAIN, collection="notes"),
        lambda said: {"large": [once("<search>question</search>", marked(said))]},
    ),
]


def judged(said: Answer) -> Callable[[Ask], Answer]:
    """Accepts a draft, or answers itself where there is none."""
    return lambda ask: "ACCEPT" if "Check the numbered lines" in ask.request.messages[0].content else said


def once(first: str, then: Answer) -> Callable[[Ask], Answer]:
    """Asks for something first, unless the conversation holds it already or is under a constraint."""

    def answer(ask: Ask) -> Answer:
        told = any("<context>" in turn.content for turn in ask.request.messages)
        return (then if not ask.request.constrained else str(then)[8:-9]) if told else first

    return answer


every_way = pytest.mark.parametrize("way", WAYS, ids=[way.name for way in WAYS])
NUMBER = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
TOOLS = (Tool(name="f", parameters=NUMBER), Tool(name="g"))
CALLS = (
    ToolCall(id="call_1", name="f", arguments='{"x": 1}'),
    ToolCall(id="call_2", name="g", arguments="{}", index=1),
)


def asked(*turns: Message, **more: Any) -> ChatRequest:
    return ChatRequest(messages=turns or (Message(role="user", content="question"),), **more)


def asks_of(table: Bed, model: str) -> list[Ask]:
    return [ask for ask in table.provider.asked if ask.model.name == model]


def speaker_of(way: Way, request: ChatRequest) -> str:
    """Whose words the answer is: a draft is not patched where tools or a constraint are asked for."""
    return "large" if way.patches and (request.tools or request.constrained) else way.speaker


@every_way
async def test_parallel_tool_calls_come_through_as_they_were_written(way: Way) -> None:
    request = asked(tools=TOOLS)
    table = way.bed(Tools(CALLS))
    finished, events = await table.run(way.plan, request=request, stream=True)
    (choice,) = finished.choices
    assert (choice.message.tool_calls, choice.finish_reason) == (CALLS, "tool_calls")
    assert asks_of(table, speaker_of(way, request))[-1].request.tools == TOOLS
    fragments = [call for event in events if isinstance(event, Delta) for call in event.tool_calls]
    joined = {index: "".join(f.arguments for f in fragments if f.index == index) for index in (0, 1)}
    assert joined == {0: '{"x": 1}', 1: "{}"}
    assert [event.finish_reason for event in events if isinstance(event, Delta) and event.finish_reason] == [
        "tool_calls"
    ]


@every_way
async def test_where_one_call_is_wanted_it_is_told_and_held_to(way: Way) -> None:
    request = asked(tools=TOOLS, one_call=True)
    table = way.bed(Tools(CALLS))
    finished, events = await table.run(way.plan, request=request, stream=True)
    (choice,) = finished.choices
    assert (choice.message.tool_calls, choice.finish_reason) == (CALLS[:1], "tool_calls")
    fragments = [call for event in events if isinstance(event, Delta) for call in event.tool_calls]
    assert {fragment.index for fragment in fragments} == {0}
    assert asks_of(table, speaker_of(way, request))[-1].request.one_call


@every_way
async def test_a_stages_prompt_puts_the_question_in_its_own_words(way: Way) -> None:
    prompted = replace(
        way.plan, stages=tuple(replace(one, prompt="{{ task }}: {{ input }} in rhyme") for one in way.plan.stages)
    )
    table = way.bed("roses")
    table.memory.facts["question"] = ["violets"]
    finished, _ = await table.run(prompted, context=Context(task="verse"))
    assert finished.choices[0].text == "roses"
    read = [turn.content for turn in asks_of(table, way.speaker)[-1].request.messages if turn.role == "user"]
    assert read[0] == "verse: question in rhyme"


@every_way
async def test_a_turn_after_tools_reads_what_they_gave(way: Way) -> None:
    turns = (
        Message(role="user", content="question"),
        Message(role="assistant", tool_calls=CALLS),
        Message(role="tool", content="seven", tool_call_id="call_1"),
        Message(role="tool", content="eight", tool_call_id="call_2"),
    )
    request = asked(*turns, tools=TOOLS)
    table = way.bed("it is fifteen")
    finished, _ = await table.run(way.plan, request=request)
    assert finished.choices[0].text == "it is fifteen"
    for ask in table.provider.asked:
        read = [turn for turn in ask.request.messages if turn.role in ("tool", "assistant")][:3]
        assert read == list(turns[1:])


@every_way
async def test_images_are_seen_by_every_model_that_is_asked(way: Way) -> None:
    picture = Image(url="data:image/png;base64,AAAA")
    request = asked(Message(role="user", content="question", images=(picture,)))
    table = way.bed("a cat")
    finished, _ = await table.run(way.plan, request=request)
    assert finished.choices[0].text == "a cat"
    assert table.provider.asked
    for ask in table.provider.asked:
        assert picture in [image for turn in ask.request.messages for image in turn.images]


@every_way
async def test_a_schema_binds_whoever_gives_the_answer(way: Way) -> None:
    request = asked(json_schema=NUMBER)
    table = way.bed('{"x": 1}')
    finished, events = await table.run(way.plan, request=request, stream=True)
    assert finished.choices[0].text == '{"x": 1}'
    assert ("schema", 1.0) in [(score.source, score.value) for score in finished.scores]
    if way.plan.shape is not Shape.SEARCH:  # which is held to it afterwards, if at all
        assert asks_of(table, speaker_of(way, request))[-1].request.json_schema == NUMBER
    assert "".join(event.text for event in events if isinstance(event, Delta)) == '{"x": 1}'


@every_way
async def test_what_memory_knows_is_read_before_the_answer(way: Way) -> None:
    table = way.bed("known")
    table.memory.facts["question"] = ["the sky is green"]
    finished, _ = await table.run(way.plan, context=Context(memory_collection="notes"))
    assert finished.choices[0].text == "known"
    assert table.memory.asked == [("notes", "question", 3)]
    read = asks_of(table, way.speaker)[-1].request.messages
    assert any("<context>the sky is green</context>" in turn.content for turn in read)


@every_way
async def test_a_stream_says_what_the_whole_answer_says(way: Way) -> None:
    finished, events = await way.bed("one two three four").run(way.plan, stream=True)
    deltas = [event for event in events if isinstance(event, Delta)]
    assert "".join(delta.text for delta in deltas) == finished.choices[0].text == "one two three four"
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
    assert len([delta for delta in deltas if delta.text]) == (4 if way.live else 1)


@every_way
@pytest.mark.parametrize("cap_usd", [0.00001, 0.0002, 0.001, 0.005])
async def test_no_answer_costs_more_than_the_cap(way: Way, cap_usd: float) -> None:
    table = way.bed(" ".join(["tokens"] * 200))
    with suppress(Invalid):
        await table.run(way.plan, "question " * 5, context=Context(max_cost_usd=cap_usd))
    (record,) = table.records.added
    assert record.cost_usd <= cap_usd
    assert record.error_code in ("", "cost_cap")
    assert all(ask.request.sampling.max_tokens for ask in table.provider.asked)


@every_way
async def test_the_deadline_only_shrinks(way: Way) -> None:
    world = still_world()
    clock = world.clock
    assert isinstance(clock, ManualClock)
    started_s, left = clock.monotonic(), []
    table = way.bed("the answer", world=world)
    generate = table.provider.generate

    async def slowly(ask: Ask) -> Any:
        left.append((ask.timeout_s, 20.0 - (clock.monotonic() - started_s)))
        async for piece in generate(ask):
            yield piece
        clock.advance(1)

    table.provider.generate = slowly  # type: ignore[method-assign]
    patient = replace(way.plan, stages=tuple(replace(one, timeout_s=100.0) for one in way.plan.stages))
    await table.run(patient, left_s=20.0)
    assert left
    assert all(timeout_s == pytest.approx(left_s) for timeout_s, left_s in left)


@every_way
async def test_cancelling_reaches_whoever_is_at_work(way: Way) -> None:
    table = way.bed("never ends")
    voters = {one.model for one in way.plan.of(Role.MEMBER)}  # any two of them would decide
    table.provider.hang |= voters | {way.speaker}
    running = asyncio.create_task(table.run(way.plan, stream=True))
    await eventually(lambda: bool(asks_of(table, way.speaker)))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert way.speaker in table.provider.closed
    assert table.records.added[0].outcome == "cancelled"


BLIND = ("json", "stream")
SEEING = (*BLIND, "tools", "vision")


@every_way
@pytest.mark.parametrize("what", ["images", "tools"])
async def test_models_that_can_take_neither_images_nor_tools_are_passed_over(way: Way, what: str) -> None:
    """Those that help an answer along: whoever gives it has to be able."""
    table = way.bed("fine")
    models = dict(table.parts.models)
    strong = way.plan.of(Role.MAIN)[-1].model if way.plan.of(Role.MAIN) else "large"
    for name in ("small", "large", "third"):
        await table.parts.catalogue.put(replace(models[name], capabilities=SEEING if name == strong else BLIND))
    picture = Message(role="user", content="question", images=(Image(url="https://x/y.png"),))
    request = asked(picture) if what == "images" else asked(tools=TOOLS)
    table.provider.script["large"] = ["<answer>fine</answer>"] if way.plan.shape is Shape.SEARCH else ["fine"]
    finished, _ = await table.run(way.plan, request=request)
    assert finished.choices[0].text == "fine"
    helped = way.name in ("a chain", "lossless speculation")  # a chain's stages are all asked for by name
    assert table.provider.models_asked() == (["small", "large"] if helped and way.name == "a chain" else ["large"])
