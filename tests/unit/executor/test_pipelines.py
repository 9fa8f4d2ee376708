"""Templates, operations, soundness, and steps run over fakes."""

from contextlib import suppress
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catena.executor.core.admission import check_errand
from catena.executor.core.chat import Context
from catena.executor.core.pipelines import cleaning
from catena.executor.core.pipelines.examples import EXAMPLES
from catena.executor.core.pipelines.soundness import check_pipeline
from catena.executor.core.pipelines.templates import fill, reach
from catena.executor.core.pipelining import check_nesting
from catena.executor.core.predicting import Inquiry, predict, predict_many
from catena.executor.core.steps import Pipeline, Step
from catena.kit.errors import Invalid, Late, Missing, Unavailable
from catena.plan.build import sequential
from tests.unit.executor.fakes import bed, errand, pipeline, predicted, step

SCOPE = {"data": {"a": [1, {"b": "x"}], "n": 2}, "input": "text"}


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{input}!", "text!"),
        ("{data.a.1.b}", "x"),
        ("{data.a}", [1, {"b": "x"}]),
        ("n={data.n} {data.a}", 'n=2 [1,{"b":"x"}]'),
        ("{{input}} stays", "{input} stays"),
        ('{"json": "{input}"}', '{"json": "text"}'),
        ({"k": ["{data.n}", 3]}, {"k": [2, 3]}),
    ],
)
def test_templates_insert_values_and_nothing_else(template: Any, filled: Any) -> None:
    assert fill(template, SCOPE) == filled


def test_a_name_that_leads_nowhere_says_what_there_is() -> None:
    with pytest.raises(Invalid, match="there is a, n"):
        fill("{data.zzz}", SCOPE)


def test_what_is_inserted_is_never_read_as_a_template() -> None:
    assert fill("{a}", {"a": "{b} {{b}}", "b": 1}) == "{b} {{b}}"


def test_a_template_cannot_grow_without_bound() -> None:
    with pytest.raises(Invalid, match="grew beyond"):
        fill("{a}{a} ", {"a": "x" * 600_000})


@given(st.text(alphabet='{}ab."\\ [],:1', max_size=60))
def test_any_text_is_a_template_that_fills_or_is_refused(template: str) -> None:
    with suppress(Invalid):
        fill(template, {"a": 1, "b": {"a": 2}})


@pytest.mark.parametrize(
    ("operation", "value", "made"),
    [
        ("collapse_spaces", "  a \n b ", "a b"),
        ("remove_html", "<b>a</b> &amp; <i x='1'>b</i>", "a & b"),
        ("remove_control", "a\x00b\tc", "ab\tc"),
        ("normalise", "\ufb01ne", "fine"),
        ("lines", " a \n\n b", ["a", "b"]),
        ("json", 'Sure!\n```json\n{"a": "}{"}\n```', {"a": "}{"}),
        ({"truncate": 2}, "abc", "ab"),
        ({"key": "a.0"}, 'x {"a": [7]} y', 7),
        ({"map": {"yes": 1, "*": 0}}, "no", 0),
        ({"metadata": {"v": 1}}, "x", {"value": "x", "metadata": {"v": 1}}),
        ({"chunks": 2}, [1, 2, 3], [[1, 2], [3]]),
        ({"split": ","}, "a,b", ["a", "b"]),
    ],
)
def test_operations(operation: Any, value: Any, made: Any) -> None:
    cleaning.check(operation)
    assert cleaning.apply(operation, value) == made


@pytest.mark.parametrize("operation", ["nothing", {"truncate": "x"}, {"a": 1, "b": 2}, 3, {"truncate": True}])
def test_unknown_operations_are_refused(operation: Any) -> None:
    with pytest.raises(Invalid, match="unknown or its argument"):
        cleaning.check(operation)


def test_json_is_found_behind_brackets_that_are_none() -> None:
    assert cleaning.extract_json('[not this] but {"a": [1]}') == {"a": [1]}
    with pytest.raises(Invalid, match="no JSON"):
        cleaning.extract_json("{{{{")


def test_paths_reach_into_lists_and_mappings() -> None:
    assert reach({"a": [{"b": 1}]}, "a.0.b") == 1


ECHO = step("say", "model", model="small")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (pipeline(), "0 steps"),
        (pipeline(ECHO, name="Bad Name"), "pipeline name"),
        (pipeline(ECHO, ECHO), "two steps"),
        (pipeline(step("input", "preprocess", operations=["strip"])), "none of"),
        (pipeline(step("a", "magic")), "of type 'magic'"),
        (pipeline(step("a", "preprocess")), "missing required field"),
        (pipeline(step("a", "preprocess", operations=["zip"])), "unknown"),
        (pipeline(step("a", "transform", value="{b}"), step("b", "transform", value=1)), "no earlier step"),
        (pipeline(step("a", "model")), "names no model"),
        (pipeline(step("a", "model", model="vectors")), "is of type embedding"),
        (pipeline(step("a", "model", model="small", shape="auto")), "leaves the choice open"),
        (pipeline(step("a", "model", kind="classification", model="vectors", labels={"x": ["1"]})), "two labels"),
        (pipeline(step("a", "model", kind="classification")), "names no model"),
        (pipeline(step("a", "model", kind="classification", model="vectors")), "needs one of type classification"),
        (pipeline(step("a", "model", kind="prediction", model="mood")), "needs one of type prediction"),
        (pipeline(step("a", "model", kind="prediction", model="taste", labels={"x": ["1"], "y": ["2"]})), "labels"),
        (pipeline(step("a", "model", model="small", json_schema={"type": 7})), "not a JSON schema"),
        (pipeline(step("a", "model", model="small", tempratur=1)), "unknown field"),
        (pipeline(step("a", "feature", entity_type="u", entity_id="1")), "group or features"),
        (pipeline(step("a", "batch", step={"type": "batch", "config": {}})), "batch inside a batch"),
        (pipeline(step("a", "batch", step={"type": "transform", "config": {"value": "{zip}"}})), "no earlier step"),
        (pipeline(step("a", "transform", value="{item}")), "no earlier step"),
        (pipeline(step("a", "transform", on_error="explode", value=1)), "on_error"),
    ],
)
def test_an_unsound_pipeline_is_refused_with_its_step_and_reason(made: Pipeline, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        check_pipeline(made, bed().parts.models)


def test_a_pipeline_of_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(Missing, match="unknown model 'smal'; did you mean small"):
        check_pipeline(pipeline(step("a", "model", model="smal")), bed().parts.models)


async def test_pipelines_that_call_each_other_in_a_circle_are_refused() -> None:
    table = bed()
    await table.pipelines.put("acme", pipeline(step("a", "pipeline", name="one"), name="two"))
    with pytest.raises(Invalid, match="one > two > one"):
        await check_nesting(table.parts, "acme", pipeline(step("a", "pipeline", name="two"), name="one"))


async def test_steps_see_data_parameters_and_each_other() -> None:
    table = bed(small="hello")
    found = await predicted(
        table,
        step("clean", "preprocess", operations=["strip", "lower"]),
        step("say", "model", model="small", system="{parameters.tone}", prompt="<{clean}>"),
        step("out", "transform", value={"said": "{say}", "of": "{data}"}),
        data=" IN ",
        parameters={"tone": "kind"},
    )
    assert found.result == {"said": "hello", "of": " IN "}
    assert table.provider.said_to("small") == "system: kind\nuser: <in>"
    assert [one.name for one in found.steps] == ["clean", "say", "out"]
    assert found.usage.output_tokens == 1
    assert table.records.added[0].plan.pipeline == "p"


@pytest.mark.parametrize(("rule", "result"), [("skip", "in"), ("default", 7)])
async def test_a_failing_step_is_passed_over_or_replaced(rule: str, result: Any) -> None:
    table = bed(small=[Unavailable("away", code="gone")])
    found = await predicted(
        table, step("say", "model", on_error=rule, default=7, model="small"), step("out", "transform", value="{input}")
    )
    assert found.result == result
    assert found.steps[0].error == "gone: away"


async def test_a_failing_step_fails_the_pipeline_unless_told_otherwise() -> None:
    with pytest.raises(Unavailable, match="away"):
        await predicted(bed(small=[Unavailable("away", code="model_disabled")]), ECHO)


async def test_a_step_that_takes_too_long_fails_as_late() -> None:
    table = bed(small="never")
    table.provider.hang.add("small")
    slow = Step(name="say", type="model", config={"model": "small"}, timeout_s=0.01)
    with pytest.raises(Late, match="'say' took longer"):
        await predicted(table, slow)


async def test_features_and_memory_feed_the_model() -> None:
    table = bed(small="ok")
    table.features.values["user/7"] = {"tier": "gold"}
    table.memory.facts["gold"] = ["first", "second"]
    found = await predicted(
        table,
        step("who", "feature", entity_type="user", entity_id="{data.user}", features=["tier"]),
        step("known", "memory", collection="docs", query="{who.values.tier}", n_results=2),
        step("say", "model", model="small", prompt="{known.text}"),
        data={"user": 7},
    )
    assert found.result == "ok"
    assert table.memory.asked == [("docs", "gold", 2)]
    assert table.provider.said_to("small") == "user: first\nsecond"


async def test_nested_pipelines_run_as_a_step() -> None:
    table = bed(small="deep")
    await table.pipelines.put("acme", pipeline(ECHO, name="inner"))
    found = await predicted(
        table, step("in", "pipeline", name="inner"), step("out", "postprocess", operations=["upper"])
    )
    assert found.result == "DEEP"
    assert table.records.added[0].stages[0].name == "in.say"


async def test_classification_names_the_nearest_label_with_scores() -> None:
    labels = {"glad": ["good"], "sad": ["bad"]}
    table = bed()
    found = await predicted(
        table, step("mood", "model", kind="classification", model="vectors", labels=labels), data="good good"
    )
    assert found.result["label"] == "glad"
    assert sum(found.result["scores"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "model", "data", "asked"),
    [
        ("classification", "mood", "fine", ["fine"]),
        ("classification", "mood", {"text": "a", "text_pair": "b"}, [{"text": "a", "text_pair": "b"}]),
        ("token-classification", "names", ["a", "b"], ["a", "b"]),
        ("prediction", "taste", [0.5, 2], [[0.5, 2]]),
        ("prediction", "taste", {"age": 3}, [{"age": 3}]),
        ("prediction", "taste", [[1.0], [2.0]], [[1.0], [2.0]]),
    ],
)
async def test_a_model_that_does_not_generate_reads_one_input_or_many(
    kind: str, model: str, data: Any, asked: list[Any]
) -> None:
    table = bed()
    single = len(asked) == 1
    want = {"of": asked[0]} if single else [{"of": one} for one in asked]

    alone = await predict(
        table.parts, Inquiry(tenant="acme", model_id=model, data=data, parameters={"top": 1}, left_s=9.0)
    )
    step_ = await predicted(table, step("s", "model", kind=kind, model=model, top=2, truncate=True), data=data)

    assert alone.result == step_.result == want
    assert table.predictor.asked == [
        (model, asked, {"top": 1}),
        (model, asked, {"truncate": True, "top": 2, "aggregation": ""}),
    ]
    assert alone.usage.input_tokens == len(asked)
    assert alone.cost_usd == pytest.approx(len(asked) * 3e-6 if model == "mood" else 0)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("taste", "text"),
        ("taste", []),
        ("taste", [True]),
        ("taste", [[1.0], ["x"]]),
        ("mood", {"txt": "a"}),
        ("mood", []),
    ],
)
async def test_what_a_model_cannot_read_is_refused(model: str, data: Any) -> None:
    with pytest.raises(Invalid) as refused:
        await predict(bed().parts, Inquiry(tenant="acme", model_id=model, data=data, left_s=9.0))
    assert refused.value.code in ("bad_input", "empty_input")


async def test_the_shipped_recommendation_ranks_by_a_users_features() -> None:
    table = bed()
    table.features.values["user/u1"] = {"age": 0.3, "visits": 7.0}
    (made,) = [one for one in EXAMPLES if one.name == "recommend-from-features"]
    found = await predicted(table, *made.steps, data={"user_id": "u1"}, parameters={"model": "taste"})
    assert found.result == {"of": [0.3, 7.0]}
    assert table.predictor.asked[0][2]["top"] == 3


async def test_many_inputs_are_labelled_in_one_call() -> None:
    table = bed()
    many = [Inquiry(tenant="acme", model_id="taste", data=[float(number)], left_s=9.0) for number in range(3)]
    found = await predict_many(table.parts, many, 10)
    assert [one.result for one in found] == [{"of": [0.0]}, {"of": [1.0]}, {"of": [2.0]}]
    assert len(table.predictor.asked) == 1


def test_a_model_that_does_not_generate_answers_no_chat() -> None:
    with pytest.raises(Invalid, match="is of type classification; name a chat model"):
        check_errand(errand(sequential("mood")), bed().parts.models)


async def test_json_answers_are_values_and_expected_ones_are_scored() -> None:
    schema = {"type": "object"}
    table = bed(small='Here: {"a": 1}', large="4.0")
    found = await predicted(
        table,
        step("made", "model", model="small", json_schema=schema),
        step("sum", "model", model="large", expected="4"),
    )
    assert found.steps[0].output == {"a": 1}
    assert [(score.source, score.value) for score in found.scores] == [("exact", 1.0)]


async def test_cold_pipelines_are_remembered_until_a_new_version() -> None:
    table = bed(small="x")
    cold = step("say", "model", model="small", temperature=0.0)
    await predicted(table, cold)
    asked = Inquiry(tenant="acme", model_id="pipeline:p", data="in", left_s=9.0)
    again = await predict(table.parts, asked)
    assert again.cached
    assert again.cost_usd == 0
    anew = await predicted(table, cold)
    assert not anew.cached


async def test_pipelines_that_read_what_changes_are_never_remembered() -> None:
    table = bed()
    reading = step("known", "memory", query="x")
    await predicted(table, reading)
    again = await predict(table.parts, Inquiry(tenant="acme", model_id="pipeline:p", data="in", left_s=9.0))
    assert not again.cached


@pytest.mark.parametrize(
    ("data", "read"),
    [
        ("hi", "user: hi"),
        ({"text": "hi"}, "user: hi"),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}, "system: s\nuser: u"),
        ({"rows": [1]}, 'user: {"rows":[1]}'),
    ],
)
async def test_a_model_is_asked_with_whatever_shape_data_has(data: Any, read: str) -> None:
    table = bed(small="x")
    asked = Inquiry(tenant="acme", model_id="small", data=data, parameters={"max_tokens": 3}, left_s=9.0)
    assert (await predict(table.parts, asked)).result == "x"
    assert table.provider.said_to("small") == read
    assert table.provider.asked[0].request.sampling.max_tokens == 3


@pytest.mark.parametrize(
    ("data", "parameters"), [({"messages": "no"}, {}), ("x", {"temperature": "hot"}), ("x", {"temperature": 9.0})]
)
async def test_wrong_types_are_refused(data: Any, parameters: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        await predict(
            bed(small="x").parts,
            Inquiry(tenant="acme", model_id="small", data=data, parameters=parameters, left_s=9.0),
        )


async def test_many_texts_are_embedded_in_one_call() -> None:
    table = bed()
    asked = [Inquiry(tenant="acme", model_id="vectors", data=text, left_s=9.0) for text in ("good", "bad bad")]
    found = await predict_many(table.parts, asked, 10)
    assert [one.result for one in found] == [[2.0, 1.0], [1.0, 3.0]]
    assert table.embedding.calls == 1


async def test_a_budget_holds_over_all_steps_of_a_pipeline() -> None:
    table = bed(large="a b c d")
    with pytest.raises(Exception, match="max_cost_usd"):
        await predicted(
            table,
            step("one", "model", model="large"),
            step("two", "model", model="large"),
            context=Context(max_cost_usd=0.0002),
        )


@pytest.mark.timed
async def test_a_step_costs_less_than_a_millisecond_of_its_own() -> None:
    table = bed()
    kinds = [("transform", {"value": {"a": "{input}"}}), ("preprocess", {"operations": ["strip", "lower"]})]
    for kind, config in kinds:
        took_ms = []
        for count in (1, 50):
            steps = [step(f"s{number}", kind, **config) for number in range(count)]
            rounds = []
            for number in range(5):
                started = perf_counter()
                await predicted(table, *steps, data=f"text {number}", no_cache=True)
                rounds.append((perf_counter() - started) * 1000)
            took_ms.append(min(rounds))
        assert (took_ms[1] - took_ms[0]) / 49 < 1.0, kind
