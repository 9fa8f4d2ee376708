"""Batches, templates, and pipelines written as YAML, over fakes."""

from dataclasses import replace
from typing import Any

import pytest

from catena.executor.core.chat import Delta
from catena.executor.core.parts import Settings
from catena.executor.core.pipelines.soundness import check_pipeline, check_templates
from catena.executor.core.ports import Vectors
from catena.executor.core.steps import Step
from catena.executor.handlers.written import read_pipeline
from catena.kit.errors import Invalid, Unavailable
from catena.plan.model import Plan, Shape
from tests.unit.executor.fakes import DictJournal, bed, pipeline, predicted, step


async def test_a_batch_maps_in_order_at_most_so_many_at_once() -> None:
    table = bed(small=[lambda ask: f"<{ask.request.messages[-1].content}>"])
    found = await predicted(
        table,
        step("all", "batch", items="{data}", concurrency=2, step={"type": "model", "config": {"model": "small"}}),
        data=["a", "b", "c"],
    )
    assert found.result == ["<a>", "<b>", "<c>"]


async def test_a_batch_in_chunks_asks_an_embedding_model_once_a_chunk() -> None:
    table = bed()
    inner = {"type": "model", "config": {"kind": "embedding", "model": "vectors", "input": "{item}"}}
    found = await predicted(table, step("all", "batch", size=10, step=inner), data=["good"] * 25)
    assert len(found.result) == 25
    assert table.embedding.calls == 3


@pytest.mark.parametrize(
    ("config", "items", "calls"),
    [
        ({"kind": "embedding", "model": "vectors", "input": "{item}"}, ["good"] * 100, 4),
        ({"kind": "embedding", "model": "vectors"}, ["good"] * 100, 4),
        ({"kind": "embedding", "model": "vectors", "input": "x {item}"}, ["good"] * 3, 3),
        ({"kind": "embedding", "model": "vectors"}, [["good", "bad"], ["bad"]], 2),
        ({"kind": "embedding", "model": "vectors"}, ["good"] * 33, 2),
    ],
)
async def test_a_batch_asks_once_for_many_where_a_model_takes_many(
    config: dict[str, Any], items: list[Any], calls: int
) -> None:
    table = bed()
    found = await predicted(table, step("all", "batch", step={"type": "model", "config": config}), data=items)
    assert len(found.result) == len(items)
    assert table.embedding.calls == calls


async def test_a_batch_labels_and_reads_rows_as_one_by_one_would() -> None:
    table = bed()
    labels = {"glad": ["good"], "sad": ["bad"]}
    mood = {"kind": "classification", "model": "vectors", "labels": labels}
    found = await predicted(table, step("all", "batch", step={"type": "model", "config": mood}), data=["good", "bad"])
    assert [one["label"] for one in found.result] == ["glad", "sad"]
    alone = await predicted(table, step("all", "batch", step={"type": "model", "config": mood}), data=["bad"])
    assert [one["label"] for one in alone.result] == ["sad"]
    taste = {"kind": "prediction", "model": "taste"}
    rows = [[1.0, 2.0], [3.0, 4.0]]
    read = await predicted(table, step("all", "batch", step={"type": "model", "config": taste}), data=rows)
    assert read.result == [{"of": row} for row in rows]
    assert len(table.predictor.asked) == 1


async def test_a_template_sees_the_steps_before_it() -> None:
    table = bed()
    found = await predicted(
        table,
        step("first-one", "transform", value="a"),
        step("text", "template", template="{{ first_one }} of {{ data }}"),
        data="b",
    )
    assert found.result == "a of b"


@pytest.mark.parametrize(
    "unsound",
    [
        step("t", "template", template="{{ nobody }}"),
        step("t", "template", template="{{ item }}"),
        step("t", "batch", step={"type": "template", "config": {"template": "{{ zip }}"}}),
    ],
)
async def test_a_template_that_needs_what_is_not_there_is_not_stored(unsound: Step) -> None:
    parts = bed().parts
    check_pipeline(pipeline(unsound), parts.models)
    with pytest.raises(Invalid, match="no earlier step"):
        await check_templates(pipeline(unsound), parts.templates)


async def test_a_template_in_a_batch_sees_its_item() -> None:
    inner = {"type": "template", "config": {"template": "{{ item }} {{ index }}"}}
    await check_templates(pipeline(step("t", "batch", step=inner)), bed().parts.templates)


WRITTEN = """
name: shout
description: loud
steps:
  - {name: clean, type: preprocess, config: {operations: [strip, {truncate: 5}]}}
  - name: say
    type: transform
    config: {value: "{clean}!"}
    on_error: default
    default_output: none
    timeout_s: 2
"""


def test_a_pipeline_is_written_as_yaml() -> None:
    read = read_pipeline(WRITTEN)
    assert (read.name, read.description) == ("shout", "loud")
    assert read.steps[0] == step("clean", "preprocess", operations=["strip", {"truncate": 5}])
    assert (read.steps[1].on_error, read.steps[1].default_output, read.steps[1].timeout_s) == ("default", "none", 2.0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name: [", "no YAML"),
        ("name: x", "missing required field `steps`"),
        ("name: x\nsteps: [{name: a, type: b, confg: {}}]", "unknown field `confg`"),
        ("name: x\nsteps: 3", "Expected `array`"),
        ("a: &a [1, 2]\nb: *a", "aliases"),
        ("name: !!python/object/apply:os.system [ls]", "no YAML"),
        ("[" * 2000, "no YAML"),
        ("x" * 70_000, "70000 characters"),
    ],
)
def test_yaml_that_is_no_pipeline_says_where(text: str, why: str) -> None:
    with pytest.raises(Invalid, match=why) as caught:
        read_pipeline(text)
    assert caught.value.code == "bad_pipeline"


async def test_after_a_crash_no_finished_call_of_a_pipeline_is_made_again_whatever_kind_of_model_it_was() -> None:
    table, journal = bed(small=[Unavailable("crash", code="model_disabled"), "done"]), DictJournal()
    labels = {"glad": ["good"], "sad": ["bad"]}
    made = pipeline(
        step("vector", "model", kind="embedding", model="vectors"),
        step("label", "model", kind="classification", model="vectors", labels=labels, input="{data.text}"),
        step("mood", "model", kind="classification", model="mood", input="{data.text}"),
        step("each", "batch", items=["a", "b"], step={"type": "model", "config": {"kind": "embedding"}}),
        step("say", "model", model="small"),
    )
    await table.pipelines.put("acme", made)
    asked = Plan(shape=Shape.SEQUENTIAL, pipeline="p")
    table.parts = replace(table.parts, settings=Settings(embedding_model="vectors"))
    with pytest.raises(Unavailable):
        await table.run(asked, "good", journal=journal)
    calls = table.embedding.calls, len(table.predictor.asked)
    assert calls == (3, 1)
    finished, _ = await table.run(asked, "good", journal=journal)
    assert (table.embedding.calls, len(table.predictor.asked)) == calls
    assert finished.choices[0].text == "done"
    assert [one.name for one in finished.stages] == ["embed", "embed", "predict", "embed", "say"]
    assert finished.cost_usd == pytest.approx(sum(one.cost_usd for one in finished.stages))
    assert finished.cost_usd > 0


async def test_after_a_crash_a_pipeline_reads_no_memory_and_no_features_again() -> None:
    table, journal = bed(small=[Unavailable("crash", code="model_disabled"), "done"]), DictJournal()
    feature = {"entity_type": "user", "entity_id": "{item}", "group": "profile"}
    made = pipeline(
        step("who", "batch", items=["ada", "bob"], step={"type": "feature", "config": feature}),
        step("found", "memory", query="{data.text}", collection="notes"),
        step("say", "model", model="small", prompt="{who.0.values.tier} {who.1.values.tier} {found.text}"),
    )
    await table.pipelines.put("acme", made)
    table.memory.facts["good"] = ["old"]
    table.features.values |= {"user/ada": {"tier": "gold"}, "user/bob": {"tier": "tin"}}
    asked = Plan(shape=Shape.SEQUENTIAL, pipeline="p")
    with pytest.raises(Unavailable):
        await table.run(asked, "good", journal=journal)
    table.memory.facts["good"] = ["new"]
    table.features.values |= {"user/ada": {"tier": "lead"}, "user/bob": {"tier": "lead"}}
    await table.run(asked, "good", journal=journal)
    assert table.provider.said_to("small", 1) == "user: gold tin old"
    assert len(table.memory.asked) == 1


async def test_after_a_crash_a_pipeline_goes_on_with_the_version_that_it_began_with() -> None:
    table, journal = bed(small=["first", Unavailable("crash", code="model_disabled"), "done"]), DictJournal()
    inner = pipeline(step("begin", "model", model="small"), step("end", "model", model="small"), name="inner")
    await table.pipelines.put("acme", inner)
    await table.pipelines.put("acme", pipeline(step("all", "pipeline", name="inner"), name="outer"))
    asked = Plan(shape=Shape.SEQUENTIAL, pipeline="outer")
    with pytest.raises(Unavailable):
        await table.run(asked, journal=journal)
    for name in ("inner", "outer"):
        await table.pipelines.put("acme", pipeline(step("all", "transform", value="another"), name=name))
    finished, _ = await table.run(asked, journal=journal)
    assert finished.choices[0].text == "done"
    assert len(table.provider.asked) == 3, "what had ended was not asked again"
    finished, _ = await table.run(asked, journal=DictJournal())
    assert finished.choices[0].text == "another", "another run takes the newest"


async def test_tokens_that_no_encoder_counted_are_estimated_and_say_so() -> None:
    table = bed()
    embed = table.embedding.embed

    async def uncounted(*args: Any, **more: Any) -> Vectors:
        return replace(await embed(*args, **more), usage=None)

    table.embedding.embed = uncounted  # type: ignore[method-assign]
    vector = step("vector", "model", kind="embedding", model="vectors", input="{data}")
    first = await predicted(table, vector, data="x" * 400)
    assert (first.usage.input_tokens, table.records.added[-1].stages[0].reason) == (100, "tokens estimated")
    table.embedding.embed = embed  # type: ignore[method-assign]
    second = await predicted(table, vector, data="y" * 10)
    assert (second.usage.input_tokens, table.records.added[-1].stages[0].reason) == (1, "")


SAY = step("say", "model", model="large")


@pytest.mark.parametrize(
    ("steps", "heard"),
    [
        ([step("draft", "model", model="small"), SAY], ["one", " two", ""]),
        ([step("draft", "model", model="small"), step("in", "pipeline", name="inner")], ["one", " two", ""]),
        ([SAY, step("shout", "postprocess", operations=["upper"])], ["ONE TWO"]),
        (
            [SAY, step("in", "batch", items=["x"], step={"type": "model", "config": {"model": "large"}})],
            ['["one two"]'],
        ),
        ([step("say", "model", on_error="skip", model="large")], ["one two"]),
    ],
)
async def test_a_pipeline_streams_its_last_words_and_no_others(steps: list[Step], heard: list[str]) -> None:
    table = bed(small="never heard", large="one two")
    await table.pipelines.put("acme", pipeline(SAY, name="inner"))
    await table.pipelines.put("acme", pipeline(*steps))
    finished, events = await table.run(Plan(shape=Shape.SEQUENTIAL, pipeline="p"), stream=True)
    assert [event.text for event in events if isinstance(event, Delta)] == heard
    assert finished.choices[0].text == "".join(heard)


async def test_a_pipeline_whose_last_answer_becomes_json_streams_it_whole() -> None:
    table = bed(large='so: {"a": 1}')
    await table.pipelines.put("acme", pipeline(step("find", "model", model="large", json_schema={"type": "object"})))
    _, events = await table.run(Plan(shape=Shape.SEQUENTIAL, pipeline="p"), stream=True)
    assert [event.text for event in events if isinstance(event, Delta)] == ['{"a":1}']
