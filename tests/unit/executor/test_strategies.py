"""Every shape, run by the one executor over scripted models."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catena.executor.app import sound
from catena.executor.core.admission import check_plan
from catena.executor.core.chat import ChatRequest, Context, Delta, Message, Sampling, Tool, ToolCall
from catena.executor.core.events import StageResult
from catena.executor.core.parts import Settings
from catena.executor.core.strategies.search import final_answer, sifting
from catena.kit.errors import Invalid, Missing, Unavailable
from catena.kit.testing import eventually
from catena.plan.build import read_shapes
from catena.plan.model import Role, Shape
from tests.unit.executor.fakes import Tools, bed, members, plan, stage

SEQUENTIAL = plan(Shape.SEQUENTIAL, stage(Role.MAIN, "large"))
CASCADE = plan(Shape.CASCADE, stage(Role.FAST, "small"), stage(Role.MAIN, "large"), threshold=0.5)
REFINE = plan(
    Shape.DRAFT_REFINE, stage(Role.DRAFT, "small", instruction="draft"), stage(Role.MAIN, "large", instruction="refine")
)


def outcomes(stages: tuple[StageResult, ...]) -> list[tuple[str, str]]:
    return [(one.name, one.outcome) for one in stages]


async def test_sequential_bills_catalogue_price_times_tokens() -> None:
    finished, _ = await bed(large="four score and seven").run(SEQUENTIAL, "how many years")
    assert finished.choices[0].text == "four score and seven"
    assert finished.usage.input_tokens == 3
    assert finished.cost_usd == pytest.approx((3 * 10 + 4 * 40) / 1e6)


async def test_sequential_streams_words_as_they_come() -> None:
    _, events = await bed(large="one two three").run(SEQUENTIAL, stream=True)
    assert [event.text for event in events if isinstance(event, Delta)] == ["one", " two", " three", ""]


async def test_no_deltas_come_unless_they_are_wanted() -> None:
    _, events = await bed(large="one two three").run(SEQUENTIAL)
    assert not [event for event in events if isinstance(event, Delta)]


async def test_refine_sees_the_draft_behind_the_question_and_its_instruction_before() -> None:
    table = bed(small="rough", large="fine")
    finished, _ = await table.run(REFINE, "what is it")
    assert table.provider.said_to("small") == "system: draft\nuser: what is it"
    assert table.provider.said_to("large") == "system: refine\nuser: what is it\ndraft: rough"
    assert finished.choices[0].text == "fine"
    assert [(score.value, score.source) for score in finished.scores] == [(0.5, "agreement")]


async def test_an_unchanged_draft_is_agreement() -> None:
    finished, _ = await bed(small="42", large="42.").run(REFINE)
    assert [(score.value, score.source) for score in finished.scores] == [(1.0, "agreement")]


async def test_a_failed_optional_draft_leaves_the_question_to_the_main_model() -> None:
    optional = plan(Shape.DRAFT_REFINE, stage(Role.DRAFT, "small", optional=True), stage(Role.MAIN, "large"))
    table = bed(small=[Invalid("no")], large="fine")
    finished, _ = await table.run(optional)
    assert finished.choices[0].text == "fine"
    assert "draft" not in table.provider.said_to("large")


async def test_a_failed_draft_fails_a_plan_that_needs_it() -> None:
    with pytest.raises(Invalid, match="no"):
        await bed(small=[Invalid("no")], large="fine").run(REFINE)


async def test_cascade_keeps_a_sure_fast_answer_and_never_asks_the_strong_model() -> None:
    table = bed(small="sure", large="never")
    table.provider.confidence["small"] = 0.9
    finished, events = await table.run(CASCADE, stream=True)
    assert finished.choices[0].text == "sure"
    assert table.provider.models_asked() == ["small"]
    assert [event.text for event in events if isinstance(event, Delta)] == ["sure"]


@pytest.mark.parametrize(
    ("answer", "finish", "sure", "reason"),
    [
        ("maybe", "stop", 0.3, "confidence 0.300 < 0.5"),
        ("cut off in the mid", "length", 0.9, "ended by length"),
        ("I'm sorry, but no", "stop", 0.9, "a refusal"),
    ],
)
async def test_cascade_passes_doubtful_answers_on_and_says_why(
    answer: str, finish: str, sure: float, reason: str
) -> None:
    table = bed(small=answer, large="strong")
    table.provider.confidence["small"] = sure
    table.provider.finish["small"] = finish
    finished, events = await table.run(CASCADE, stream=True)
    assert finished.choices[0].text == "strong"
    assert [(one.outcome, one.reason) for one in finished.stages] == [("rejected", reason), ("accepted", "")]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "strong"
    assert finished.cost_usd == pytest.approx(sum(one.cost_usd for one in finished.stages))


async def test_cascade_asks_on_when_the_answer_is_none_of_the_choices() -> None:
    finished, _ = await bed(small="maybe", large="yes").run(CASCADE, choices=("yes", "no"))
    assert finished.choices[0].text == "yes"
    assert ("schema", 1.0) in [(score.source, score.value) for score in finished.scores]


async def test_cascade_asks_on_when_the_answer_misses_the_schema() -> None:
    schema = {"type": "object", "required": ["a"]}
    finished, _ = await bed(small="{}", large='{"a":1}').run(CASCADE, json_schema=schema)
    assert finished.choices[0].text == '{"a":1}'
    assert ("schema", 1.0) in [(score.source, score.value) for score in finished.scores]


async def test_cascade_asks_on_when_the_answer_is_too_short() -> None:
    picky = plan(Shape.CASCADE, stage(Role.FAST, "small"), stage(Role.MAIN, "large"), min_chars=10)
    finished, _ = await bed(small="short", large="this is long enough").run(picky)
    assert finished.stages[0].reason == "5 characters < 10"


async def test_cascade_asks_on_when_the_fast_stage_is_late_and_bills_what_it_read() -> None:
    hurried = plan(Shape.CASCADE, stage(Role.FAST, "small", timeout_s=0.01), stage(Role.MAIN, "large"))
    table = bed(small="still thinking", large="strong")
    table.provider.hang.add("small")
    finished, _ = await table.run(hurried)
    assert finished.choices[0].text == "strong"
    late = finished.stages[0]
    assert (late.outcome, late.error_code, late.reason) == ("failed", "stage_timeout", "tokens estimated")
    assert late.cost_usd > 0


async def test_cascade_asks_outside_models_for_the_logprobs_that_it_needs_and_keeps_them_to_itself() -> None:
    outside = plan(Shape.CASCADE, stage(Role.FAST, "outside"), stage(Role.MAIN, "large"))
    table = bed(outside="yes", large="never")
    await table.run(outside)
    assert table.provider.asked[0].request.sampling.logprobs


async def test_consensus_takes_the_majority_and_tells_who_agreed() -> None:
    voters = plan(Shape.CONSENSUS, *members("small", "large", "third"))
    finished, _ = await bed(small="5", large="4", third="4").run(voters)
    assert finished.choices[0].text == "4"
    assert outcomes(finished.stages) == [
        ("member-1", "rejected"),
        ("member-2", "accepted"),
        ("member-3", "accepted"),
    ]
    assert [score.value for score in finished.scores] == [pytest.approx(2 / 3)]


async def test_consensus_stops_when_the_lead_cannot_be_beaten_and_bills_the_loser() -> None:
    voters = plan(Shape.CONSENSUS, *members("small", "large", "third"))
    table = bed(small="4", large="4", third="never ends")
    table.provider.hang.add("third")
    finished, _ = await table.run(voters)
    assert finished.choices[0].text == "4"
    loser = next(one for one in finished.stages if one.name == "member-3")
    assert loser.outcome == "cancelled"
    assert loser.cost_usd > 0
    assert finished.cost_usd == pytest.approx(sum(one.cost_usd for one in finished.stages))
    assert "third" in table.provider.closed


async def test_weights_outvote_heads() -> None:
    voters = plan(Shape.CONSENSUS, *members("small", "third", "large"), vote="weighted", weights={"member-3": 5.0})
    finished, _ = await bed(small="5", third="5", large="4").run(voters)
    assert finished.choices[0].text == "4"


async def test_without_a_judge_the_surest_of_equals_wins() -> None:
    table = bed(small="4", large="5", third="6")
    table.provider.confidence |= {"small": 0.2, "large": 0.9, "third": 0.4}
    finished, _ = await table.run(plan(Shape.CONSENSUS, *members("small", "large", "third")))
    assert finished.choices[0].text == "5"


async def test_a_judge_breaks_a_tie_by_number() -> None:
    voters = plan(Shape.CONSENSUS, *members("small", "third"), stage(Role.JUDGE, "large"))
    table = bed(small="red", third="blue", large="2")
    finished, _ = await table.run(voters, "which colour")
    assert finished.choices[0].text == "blue"
    assert "which colour\n\n1. red\n2. blue" in table.provider.said_to("large")


async def test_a_medoid_is_the_answer_nearest_to_the_others() -> None:
    voters = plan(Shape.CONSENSUS, *members("small", "large", "third"), vote="medoid")
    table = bed(small="the cat sat on the mat", large="a cat sat on the mat today", third="forty two")
    finished, _ = await table.run(voters)
    assert finished.choices[0].text == "the cat sat on the mat"


async def test_a_consensus_survives_a_member_that_fails() -> None:
    voters = plan(Shape.CONSENSUS, *members("small", "large"))
    finished, _ = await bed(small=[Invalid("no")], large="4").run(voters)
    assert finished.choices[0].text == "4"


async def test_a_consensus_of_failures_fails_as_its_first_member_did() -> None:
    voters = plan(Shape.CONSENSUS, *members("small", "large"))
    with pytest.raises(Invalid, match="too long"):
        await bed(small=[Invalid("too long")], large=[Unavailable("away")]).run(voters)


SPECULATIVE = plan(Shape.SPECULATIVE, stage(Role.DRAFT, "small"), stage(Role.MAIN, "large"), draft_tokens=3)


async def test_local_speculation_is_one_call_that_bills_both_models() -> None:
    table = bed(large="a b c")
    finished, _ = await table.run(SPECULATIVE, "one two")
    assert table.provider.asked[0].draft_model == "small"
    assert table.provider.asked[0].draft_tokens == 3
    assert not finished.lossy
    assert finished.cost_usd == pytest.approx((2 * 10 + 3 * 40 + 2 * 1 + 3 * 4) / 1e6)
    assert [(one.name, one.model) for one in finished.stages] == [("draft", "small"), ("main", "large")]


@pytest.mark.parametrize("said", [{"prompt": "{{ input }} briefly"}, {"instruction": "Be brief."}])
def test_a_draft_that_guesses_word_by_word_is_told_nothing(said: dict[str, str]) -> None:
    (draft, main), models, (word,) = SPECULATIVE.stages, bed().parts.models, said
    told = replace(draft, **said)
    for stages in ((draft, replace(main, **said)), (replace(told, model="outside"), main)):
        check_plan(replace(SPECULATIVE, stages=stages), models)
    with pytest.raises(Invalid, match=f"stage 'draft' has a.? {word}") as caught:
        check_plan(replace(SPECULATIVE, stages=(told, main)), models)
    assert caught.value.code == "bad_plan"
    config = {"draft": "small", "main": "large", f"{word}s": {"draft": said[word]}}
    with pytest.raises(Invalid, match="reads what that reads"):
        sound(read_shapes({"speculative": config}), models)


PATCHING = plan(Shape.SPECULATIVE, stage(Role.DRAFT, "outside"), stage(Role.MAIN, "large"), acceptance_threshold=0.5)


async def test_without_logits_an_accepted_draft_is_the_answer_and_labelled_lossy() -> None:
    finished, _ = await bed(outside="the answer", large="ACCEPT").run(PATCHING)
    assert finished.choices[0].text == "the answer"
    assert finished.lossy


async def test_without_logits_few_wrong_lines_are_patched() -> None:
    finished, _ = await bed(outside="right\nwrong", large="2: mended").run(PATCHING)
    assert finished.choices[0].text == "right\nmended"


async def test_without_logits_a_bad_draft_is_written_anew() -> None:
    finished, _ = await bed(outside="a\nb\nc", large=["1: x\n2: y\n3: z", "whole"]).run(PATCHING)
    assert finished.choices[0].text == "whole"
    assert not finished.lossy
    assert outcomes(finished.stages)[0] == ("draft", "rejected")


SEARCH = plan(Shape.SEARCH, stage(Role.MAIN, "large", instruction="search"), max_searches=2, collection="facts")


async def test_search_puts_what_it_finds_into_the_conversation() -> None:
    table = bed(large=["<think>hm</think><search>capital of Y</search>", "It is Z"])
    table.memory.facts["capital of Y"] = ["Y: Z", "Y: big"]
    finished, _ = await table.run(SEARCH, "q")
    assert finished.choices[0].text == "It is Z"
    assert finished.queries == ("capital of Y",)
    assert table.memory.asked == [("facts", "capital of Y", 3)]
    assert table.provider.said_to("large", 1) == (
        "system: search\nuser: q\nassistant: <think>hm</think><search>capital of Y</search>\n"
        "user: <context>Y: Z\nY: big</context>"
    )
    assert "<context>Y: Z" in finished.trace


async def test_search_bills_what_was_found_as_input_never_as_output() -> None:
    table = bed(large=["<search>k</search>", "done"])
    table.memory.facts["k"] = ["many words that nobody generated"]
    finished, _ = await table.run(SEARCH)
    assert finished.usage.output_tokens == 2


async def test_search_ends_after_the_allowed_searches() -> None:
    table = bed(large="<search>again</search>")
    finished, _ = await table.run(SEARCH)
    assert len(finished.queries) == 2
    assert len(table.provider.asked) == 3
    assert "search" not in finished.choices[0].text


async def test_a_search_that_is_only_thought_of_is_not_made() -> None:
    table = bed(large="<think>maybe <search>x</search></think>plain")
    finished, _ = await table.run(SEARCH, sampling=Sampling(stop=("a\n", "b\n", "c\n", "d\n")))
    assert finished.queries == ()
    assert finished.choices[0].text == "plain"


async def test_a_thought_that_the_stop_text_ends_at_a_query_is_asked() -> None:
    table = bed(large=["<think>maybe <search>x</search></think>never written", "plain"])
    finished, _ = await table.run(SEARCH)
    assert finished.queries == ("x",)
    assert finished.choices[0].text == "plain"


async def test_an_answer_ends_the_search_whatever_follows_it() -> None:
    table = bed(large="<answer>Z</answer> <search>more</search>")
    finished, _ = await table.run(SEARCH)
    assert (finished.queries, finished.choices[0].text) == ((), "Z")


async def test_an_answer_that_misses_the_schema_is_asked_for_once_more_under_it() -> None:
    table = bed(large=["<search>k</search>", "it is one", '{"x":1}'])
    table.memory.facts["k"] = ["one"]
    finished, events = await table.run(SEARCH, json_schema={"type": "object"}, stream=True)
    assert [ask.request.json_schema for ask in table.provider.asked] == [None, None, {"type": "object"}]
    assert finished.choices[0].text == '{"x":1}'
    assert "".join(event.text for event in events if isinstance(event, Delta)) == '{"x":1}'
    assert "<context>one</context>" in table.provider.said_to("large", 2)


async def test_what_is_found_is_tagged_as_the_model_was_trained() -> None:
    trained = replace(SEARCH, settings=replace(SEARCH.settings, context_tag="information"))
    table = bed(large=["<search>k</search>", "done"])
    table.memory.facts["k"] = ["v"]
    await table.run(trained)
    assert table.provider.said_to("large", 1).endswith("user: <information>v</information>")


@given(st.text(alphabet="ab <>/answerthik\n", max_size=80), st.data())
def test_what_streams_of_an_answer_is_its_beginning(text: str, data: st.DataObject) -> None:
    said = "<think>hm <answer>no</answer></think> so <answer>" + text
    sift, shown = sifting(), ""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=12)))
    for start, end in pairwise([0, *cuts, len(said)]):
        shown += "".join(delta.text for delta in sift([Delta(text=said[start:end])]))
        assert final_answer(said).startswith(shown)
    shown += "".join(delta.text for delta in sift([Delta(finish_reason="stop")]))
    assert shown == final_answer(said)


async def test_memory_that_a_plain_model_call_names_goes_before_the_question() -> None:
    table = bed(large="ok")
    table.memory.facts["question"] = ["known"]
    await table.run(SEQUENTIAL, context=Context(memory_collection="notes"))
    assert table.provider.said_to("large") == "user: <context>known</context>\nquestion"


async def test_a_feature_vector_is_told_to_the_model() -> None:
    table = bed(large="ok")
    table.features.values["user/42"] = {"tier": "gold"}
    await table.run(SEQUENTIAL, context=Context(feature_vector="user/42/profile"))
    assert table.provider.said_to("large").startswith('system: Known about user 42: {"tier":"gold"}')


async def test_an_adapter_costs_what_its_base_costs() -> None:
    adapter = plan(Shape.SEQUENTIAL, stage(Role.MAIN, "large@code:1.0"))
    table = bed(**{"large@code:1.0": "x"})
    finished, _ = await table.run(adapter, "one")
    assert finished.cost_usd == pytest.approx((10 + 40) / 1e6)


async def test_a_missing_adapter_is_never_hidden_by_another_stage() -> None:
    wrong = plan(Shape.CASCADE, stage(Role.FAST, "small@gone"), stage(Role.MAIN, "large"))
    with pytest.raises(Missing):
        await bed(**{"small@gone": [Missing("no such adapter")], "large": "x"}).run(wrong)


async def test_a_cost_cap_shortens_the_answer_and_then_ends_the_plan() -> None:
    table = bed(small="maybe so", large="strong")
    table.provider.finish["small"] = "length"
    with pytest.raises(Invalid) as caught:
        await table.run(CASCADE, "q " * 40, context=Context(max_cost_usd=0.00006))
    assert caught.value.code == "cost_cap"
    assert 0 < table.provider.asked[0].request.sampling.max_tokens < 15


async def test_cancelling_a_run_closes_the_model_and_records_it() -> None:
    table = bed(large="never ends")
    table.provider.hang.add("large")
    running = asyncio.create_task(table.run(SEQUENTIAL))
    await eventually(lambda: bool(table.provider.asked))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert table.provider.closed == ["large"]
    record = table.records.added[0]
    assert (record.outcome, record.stages[0].outcome) == ("cancelled", "cancelled")
    assert record.cost_usd > 0


async def test_consensus_compares_results_not_words() -> None:
    voters = plan(Shape.CONSENSUS, *members("small", "large", "third"), answer="number")
    finished, _ = await bed(small="I count 5.", large="so 3+1 gives 4", third="that is 4 apples").run(voters)
    assert finished.choices[0].text == "so 3+1 gives 4"
    assert finished.stages[1].answer_digest == finished.stages[2].answer_digest != ""


async def test_a_vote_that_breaks_the_schema_does_not_count() -> None:
    voters = plan(Shape.CONSENSUS, *members("small", "third", "large"))
    finished, _ = await bed(small="{}", third="{}", large='{"a":1}').run(voters, json_schema={"required": ["a"]})
    assert finished.choices[0].text == '{"a":1}'


async def test_a_medoid_is_found_by_meaning_where_there_is_an_embedding_model() -> None:
    voters = plan(Shape.CONSENSUS, *members("small", "large", "third"), vote="medoid")
    table = bed(
        settings=Settings(embedding_model="vectors"), small="good good", large="xx good", third="a bad bad thing"
    )
    finished, _ = await table.run(voters)
    assert table.embedding.calls == 1
    assert finished.choices[0].text == "xx good"
    assert "embed" in [one.name for one in finished.stages], "and it is billed"


async def test_a_judge_reads_the_conversation_and_the_tools_that_answers_ask_for() -> None:
    voters = plan(Shape.CONSENSUS, *members("small", "third"), stage(Role.JUDGE, "large"))
    table = bed(small=Tools((ToolCall(id="1", name="f", arguments="{}"),)), third="blue", large="1")
    turns = tuple(Message(role=role, content=role) for role in ("system", "user", "assistant", "user"))
    finished, _ = await table.run(voters, request=ChatRequest(messages=turns, tools=(Tool(name="f"),)))
    assert finished.choices[0].message.tool_calls
    assert table.provider.said_to("large").endswith(
        "user: user\nassistant: assistant\nuser: user\n\n1. call f({})\n2. blue"
    )


async def test_members_share_the_budget_by_price() -> None:
    voters = plan(Shape.CONSENSUS, *members("small", "large"))
    table = bed(small="a", large="b")
    await table.run(voters, context=Context(max_cost_usd=0.0055))
    allowed = {ask.model.name: ask.request.sampling.max_tokens for ask in table.provider.asked}
    assert allowed["small"] * 4 + allowed["large"] * 40 <= 5500
    assert allowed["small"] == pytest.approx(allowed["large"], rel=0.05)
