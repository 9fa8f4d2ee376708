"""What answers come to when they vote, and what votes weigh."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catena.executor.core.answers import KINDS, form_of, marked
from catena.executor.core.chat import ChatRequest, Choice, Message, ToolCall
from catena.executor.core.voting import cosines, medoid
from catena.kit.errors import Invalid
from catena.plan.build import ShapeConfig, build, log_odds
from catena.plan.model import Role, Shape

FREE = ChatRequest(messages=(Message(role="user", content="q"),))


def said(text: str) -> Choice:
    return Choice(message=Message(role="assistant", content=text))


@pytest.mark.parametrize(
    ("kind", "text", "form"),
    [
        ("number", "first 12, then 30. So the answer is 42 apples", "42"),
        ("number", "We get $1,234.50 in all.", "1234.5"),
        ("number", "<think>7</think> 3 + 4 = 8", "8"),
        ("number", "#### -17", "-17"),
        ("number", "none at all", None),
        ("choice", "B", "B"),
        ("choice", "(c) Paris", "C"),
        ("choice", "Well. The answer is (D).", "D"),
        ("choice", "It could be (A), but I take (B)", "B"),
        ("choice", "Paris", None),
        ("json", 'Here: ```json\n{"b": 1, "a": 2.0}\n```', '{"a":2.0,"b":1}'),
        ("json", "no object", None),
        ("code", "```python\nx=1 # one\n\n\nprint( x )\n```", "x = 1\nprint(x)"),
        ("code", "```c\nint x;  \n\nx = 1;\n```", "int x;\nx = 1;"),
        ("text", "Paris.", "Paris"),
        ("auto", r"thus \boxed{42}", "42"),
        ("auto", "<answer>Paris</answer> as I said", "Paris"),
        ("auto", "Answer: **Paris**.", "Paris"),
        ("auto", "Paris, I think", "Paris, I think"),
    ],
)
def test_answers_come_to(kind: str, text: str, form: str | None) -> None:
    assert form_of(said(text), FREE, kind) == form


@given(st.sampled_from([*KINDS]), st.text(alphabet='ab1(){}[]"`\n#.:\\x\x00 $,answer', max_size=120))
def test_any_text_comes_to_something_or_nothing(kind: str, text: str) -> None:
    assert isinstance(KINDS[kind](text), str | None)


def test_deep_code_is_compared_as_text() -> None:
    assert form_of(said("(" * 5000 + ")" * 5000), FREE, "code")


def test_what_breaks_the_constraint_has_no_vote() -> None:
    picky = ChatRequest(messages=FREE.messages, choices=("yes", "no"))
    assert form_of(said("yes"), picky, "auto") == "yes"
    assert form_of(said("maybe"), picky, "auto") is None
    assert form_of(said(" "), FREE, "auto") is None


def test_tools_are_compared_as_they_are_asked_for() -> None:
    calls = [(ToolCall(id=id_, name="f", arguments=text),) for id_, text in (("1", '{"a":1}'), ("2", '{ "a": 1 }'))]
    one, other = (Choice(message=Message(role="assistant", tool_calls=call)) for call in calls)
    assert form_of(one, FREE, "number") == form_of(other, FREE, "number") is not None


def test_the_last_mark_counts() -> None:
    assert marked("answer: 3\nno, answer: 4") == "4"
    assert marked("nothing of the sort") is None


def test_weights_follow_log_odds_and_chance_weighs_nothing() -> None:
    assert log_odds(0.5) == log_odds(0.2) == 0.0
    assert log_odds(0.9) == pytest.approx(2.197, abs=1e-3)
    assert log_odds(1.0) == log_odds(0.99)
    voters = build(
        Shape.CONSENSUS, ShapeConfig(members=["a", "b", "c"], vote="weighted", accuracies={"a": 0.9, "b": 0.6})
    )
    weights = voters.settings.weights
    assert set(weights) == {"member-1", "member-2"}
    assert weights["member-1"] > weights["member-2"] > 0


def test_a_cascade_may_have_several_fast_models_and_a_verifier() -> None:
    told = {"judge": "v", "checks": ["agreement", "verifier"], "prompts": {"fast": "{{ input }}!"}}
    made = build(Shape.CASCADE, ShapeConfig(fast=["a", "b"], main="c", **told))  # type: ignore[arg-type]
    assert [one.prompt for one in made.stages] == ["{{ input }}!", "{{ input }}!", "", ""]
    assert [(one.name, one.role, one.model) for one in made.stages] == [
        ("fast", Role.FAST, "a"),
        ("fast-2", Role.FAST, "b"),
        ("main", Role.MAIN, "c"),
        ("judge", Role.JUDGE, "v"),
    ]


@pytest.mark.parametrize(
    ("wrong", "said_of_it"),
    [
        ({"checks": ["verifier"]}, "needs a judge"),
        ({"checks": ["magic"]}, "unknown check 'magic'"),
        ({"answer": "poem"}, "unknown answer 'poem'"),
        ({"context_tag": "div"}, "unknown context_tag 'div'"),
        ({"samples": 1}, "samples 1"),
        ({"accuracies": {"a": 1.5}}, "accuracy of a 1.5"),
        ({"judge": "c", "prompts": {"judge": "{{ input }}"}}, "no prompt for 'judge'; use one of fast, main"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(wrong: dict[str, object], said_of_it: str) -> None:
    with pytest.raises(Invalid, match=said_of_it):
        build(Shape.CASCADE, ShapeConfig(fast="a", main="b", **wrong))  # type: ignore[arg-type]


def test_the_medoid_is_weighed() -> None:
    nearness = cosines([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert medoid(nearness, [1.0, 1.0, 1.0]) == 1
    assert medoid(nearness, [0.0, 0.0, 1.0]) == 1
    assert medoid(nearness, [1.0, 0.1, 0.1]) == 1
