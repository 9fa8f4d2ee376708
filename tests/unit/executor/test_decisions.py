"""Votes, checks, normal forms, retries, keys: the plain functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catena.executor.core.actions import Result
from catena.executor.core.attempts import Limits, attempts, may_repeat, timeout_s
from catena.executor.core.catalogue import Model, find, may_draft
from catena.executor.core.chat import ChatRequest, Choice, Delta, Message, Sampling, Tool, ToolCall, Usage, gather
from catena.executor.core.checks import doubt, fits_schema, is_refusal
from catena.executor.core.estimates import Paces, affordable_tokens
from catena.executor.core.normal import digest, normal
from catena.executor.core.remembering import cache_key, repeatable
from catena.executor.core.strategies.search import final_answer, query_of
from catena.executor.core.strategies.speculative import patch
from catena.executor.core.texts import masked
from catena.executor.core.voting import likeness, medoid, tally, unbeatable
from catena.executor.drivers.cache import LruCache
from catena.executor.drivers.http.refusals import retry_after_s
from catena.kit.clock import ManualClock
from catena.kit.errors import CatenaError, Exhausted, Invalid, Late, Missing, Unavailable
from catena.plan.model import Role, Settings, Shape, Stage
from tests.unit.executor.fakes import LARGE, SMALL, errand, plan, stage

ANY = plan(Shape.SEQUENTIAL, stage(Role.MAIN, "large"))


@pytest.mark.parametrize(
    ("one", "other"),
    [("42", "42.0"), ("$1,000", "1000"), ('"Paris."', "Paris"), ('{"b":1,"a":2}', '{"a": 2, "b": 1}'), ("Yes", "yes!")],
)
def test_answers_that_say_the_same_are_equal(one: str, other: str) -> None:
    assert normal(one) == normal(other)


@pytest.mark.parametrize(("one", "other"), [("HELLO", "hello"), ("42", "43"), ("a b", "ab"), ("50%", "50")])
def test_answers_that_differ_stay_different(one: str, other: str) -> None:
    assert normal(one) != normal(other)


@given(st.text(max_size=200))
def test_any_text_has_a_normal_form_that_is_its_own(text: str) -> None:
    assert isinstance(normal(text), str)


def test_digests_of_equal_answers_are_equal_within_a_tenant_only() -> None:
    one, other = (Choice(message=Message(role="assistant", content=text)) for text in ("Yes.", "yes"))
    assert digest((one,), "a") == digest((other,), "a") != digest((one,), "b")


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.floats(0.1, 5)), min_size=1, max_size=7), st.data()
)
def test_a_lead_called_unbeatable_is_never_beaten(votes: list[tuple[str | None, float]], data: st.DataObject) -> None:
    forms = [form for form, _ in votes]
    weights = [weight for _, weight in votes]
    still = [form is None for form in forms]
    if not unbeatable(forms, weights, still):
        return
    leader = tally(forms, weights).winner
    rest = [form if form is not None else data.draw(st.sampled_from(["a", "b", "c"])) for form in forms]
    assert tally(rest, weights).winner == leader


def test_ties_go_to_the_first_and_are_told() -> None:
    votes = tally(["x", "y"], [1.0, 1.0])
    assert (votes.winner, votes.tied, votes.share) == ("x", True, 0.5)


def test_the_medoid_of_equals_is_the_first() -> None:
    assert medoid(likeness(["a", "a", "zzz"]), [1.0, 1.0, 1.0]) == 0


def answer(text: str, finish: str = "stop", confidence: float | None = None, **more: object) -> Result:
    message = Message(role="assistant", content=text, **more)  # type: ignore[arg-type]
    return Result(choices=(Choice(message=message, finish_reason=finish),), confidence=confidence)


COUNT = Tool(name="f", parameters={"type": "object", "properties": {"n": {"type": "integer"}}})
ASKED = ChatRequest(messages=(Message(role="user", content="q"),), tools=(COUNT,))


@pytest.mark.parametrize(
    ("result", "check"),
    [
        (answer("x" * 60), None),
        (answer("short"), "min_chars"),
        (answer("x" * 60, "length"), "truncation"),
        (answer("x" * 60, "content_filter"), "truncation"),
        (answer("```py\n" + "x" * 60), "truncation"),
        (answer("I\u2019m sorry, but I can\u2019t help with that request, as you will surely understand."), "refusal"),
        (answer("x" * 60, confidence=0.49), "confidence"),
        (answer("x" * 60, confidence=0.5), None),
        (answer("", "tool_calls", tool_calls=(ToolCall(id="1", name="f"),)), None),
        (answer("", "tool_calls", tool_calls=(ToolCall(id="1", name="f", arguments='{"n": "x"}'),)), "schema"),
        (answer("", "tool_calls", tool_calls=(ToolCall(id="1", name="f", arguments='{"n": 1'),)), "schema"),
        (answer("", "tool_calls", tool_calls=(ToolCall(id="1", name="g"),)), "schema"),
        (Result(error=Late("slow", code="stage_timeout")), "error"),
        (Result(), "empty"),
    ],
)
def test_doubts(result: Result, check: str | None) -> None:
    found = doubt(ASKED, result, Settings())
    assert (found.check if found else None) == check


def test_only_the_checks_that_a_plan_names_are_made() -> None:
    assert doubt(ASKED, answer("x" * 60, "length", 0.1), Settings(checks=("refusal",))) is None


def test_a_plans_own_phrases_take_the_place_of_the_list() -> None:
    assert is_refusal("unknown", ["unknown"])
    assert not is_refusal("I cannot say", ["unknown"])


def test_schemas_are_held_against_the_whole_text() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    assert fits_schema('{"a": 1}', schema)
    assert not fits_schema('{"a": "x"}', schema)
    assert not fits_schema("a: 1", schema)
    with pytest.raises(Invalid, match="not a JSON schema"):
        fits_schema("1", {"type": "nonsense"})


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("<search>a b</search> rest", (0, "a b")),
        ("so <search>cut off", (3, "cut off")),
        ("<think><search>x</search></think>done", None),
        ("<search>  </search>", None),
        ("plain", None),
    ],
)
def test_queries_are_found_outside_thoughts(text: str, query: tuple[int, str] | None) -> None:
    assert query_of(text) == query


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<think>hm</think> It is 4.", "It is 4."),
        ("a <answer>B</answer> c", "B"),
        ("<information>x</information>yes", "yes"),
        ("<search>again</search>", ""),
    ],
)
def test_final_answers_are_without_asides(text: str, words: str) -> None:
    assert final_answer(text) == words


@pytest.mark.parametrize(
    ("verdict", "patched"),
    [
        ("ACCEPT.", ("a\nb", 1.0)),
        ("2: B", ("a\nB", 0.5)),
        ("3: c", None),
        ("I think it is fine", None),
        ("", None),
    ],
)
def test_patches(verdict: str, patched: tuple[str, float] | None) -> None:
    assert patch(["a", "b"], verdict) == patched


@pytest.mark.parametrize(
    ("error", "streamed", "again"),
    [
        (Unavailable("x"), False, True),
        (Exhausted("x"), False, True),
        (Unavailable("x"), True, False),
        (Unavailable("x", code="provider_key_refused"), False, False),
        (Late("x"), False, False),
        (Invalid("x"), False, False),
        (Missing("x"), False, False),
    ],
)
def test_only_what_passes_by_itself_and_was_not_seen_is_repeated(
    error: CatenaError, streamed: bool, again: bool
) -> None:
    assert may_repeat(error, streamed=streamed) is again


def test_attempts_and_timeouts_follow_role_and_importance() -> None:
    limits = Limits()
    plain, optional = (
        Stage(name="a", role=Role.FAST, model="m"),
        Stage(name="a", role=Role.MAIN, model="m", optional=True),
    )
    assert [attempts(plain, limits, critical=critical) for critical in (False, True)] == [2, 3]
    assert attempts(optional, limits, critical=True) == 1
    assert (timeout_s(plain, limits), timeout_s(optional, limits)) == (2.0, 30.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"Retry-After": "Thu, 01 Jan 1970 00:01:00 GMT"}, 60.0),
        ({"Retry-After": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(headers: dict[str, str], seconds: float) -> None:
    assert retry_after_s(headers, 0.0) == seconds


def test_estimates_learn_a_models_tokens_per_character() -> None:
    paces = Paces()
    assert paces.guess("m", chars_in=40, chars_out=8) == Usage(input_tokens=10, output_tokens=2)
    paces.learn("m", 100, Usage(input_tokens=80, output_tokens=20))
    assert paces.guess("m", chars_in=40, chars_out=8) == Usage(input_tokens=40, output_tokens=8)


def test_a_budget_is_turned_into_tokens() -> None:
    asked = ChatRequest(prompt="x" * 400)
    assert affordable_tokens(LARGE, asked, 0.002, Paces()) == 25
    assert affordable_tokens(LARGE, asked, 0.0005, Paces()) == 0
    assert affordable_tokens(Model(name="free"), asked, 0.0, Paces()) is None


def test_adapters_are_found_through_their_base_and_outside_models_have_none() -> None:
    models = {"small": SMALL, "far": Model(name="far", provider="openai"), "off": Model(name="off", status="disabled")}
    assert find(models, "small@x:1").parent == "small"
    for name in ("far@x", "nobody"):
        with pytest.raises(Missing):
            find(models, name)
    with pytest.raises(Unavailable, match="disabled"):
        find(models, "off")


def test_only_declared_local_models_draft_without_loss() -> None:
    models = {"small": SMALL, "large": LARGE, "far": Model(name="far", provider="openai", draft_for=("large",))}
    assert may_draft(models, "small", "large@code")
    assert not may_draft(models, "large", "small")
    assert not may_draft(models, "far", "large")


def test_only_cold_questions_are_remembered() -> None:
    cold, warm = Sampling(temperature=0.0), Sampling(temperature=0.7)
    hot = plan(Shape.CONSENSUS, Stage(name="m", role=Role.MEMBER, model="large", temperature=0.9))
    assert repeatable(errand(ANY, sampling=cold))
    assert repeatable(errand(ANY, sampling=Sampling(temperature=0.7, seed=1)))
    assert not repeatable(errand(ANY, sampling=warm))
    assert not repeatable(errand(ANY))
    assert not repeatable(errand(hot, sampling=cold))
    assert not repeatable(errand(plan(Shape.SEARCH, stage(Role.MAIN, "large")), sampling=cold))
    assert not repeatable(errand(plan(Shape.SEQUENTIAL, stage(Role.MAIN, "large@auto")), sampling=cold))


def test_keys_differ_by_tenant_plan_and_words() -> None:
    keys = {
        cache_key(errand(ANY)),
        cache_key(errand(ANY, "other")),
        cache_key(errand(ANY, tenant="b")),
        cache_key(errand(plan(Shape.SEQUENTIAL, stage(Role.MAIN, "small")))),
    }
    assert len(keys) == 4
    assert cache_key(errand(ANY)) in keys


def test_the_cache_forgets_the_oldest_the_expired_and_the_changed() -> None:
    clock = ManualClock()
    cache = LruCache(size=2, ttl_s=10, clock=clock)
    for key, model in (("a", "base@x:1"), ("b", "other"), ("c", "base@x:2")):
        cache.put(key, key, [model])
    assert [cache.get(key) for key in "abc"] == [None, "b", "c"]
    assert cache.forget("base@x") == 1
    assert cache.get("c") is None
    clock.advance(11)
    assert cache.get("b") is None


def test_fragments_of_tool_calls_are_joined_by_index() -> None:
    first = Delta(tool_calls=(ToolCall(id="1", name="f", arguments='{"a"', index=1),))
    second = Delta(tool_calls=(ToolCall(arguments=":1}", index=1), ToolCall(id="0", name="g", index=0)))
    calls = gather([first, second, Delta(finish_reason="tool_calls")])[0].message.tool_calls
    assert [(call.id, call.name, call.arguments) for call in calls] == [("0", "g", ""), ("1", "f", '{"a":1}')]


def test_kept_texts_are_masked() -> None:
    said = "mail a.b@c.org, key sk-abcdefghijklmnop1234, card 4111 1111 1111 1111, sum 27+58"
    assert masked(said) == "mail [email], key [key], card [number], sum 27+58"
