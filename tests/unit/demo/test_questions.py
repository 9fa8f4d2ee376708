from collections import Counter
from random import Random

import pytest

from demo.questions import (
    ABSENT,
    DEMO_MIX,
    FACT,
    PRESENT,
    Question,
    corrupted,
    fact_question,
    facts,
    is_right,
    normalise,
    part_of,
    questions,
)

WORKED = [
    ("upper", "upper: ", str.upper),
    ("reverse", "reverse: ", lambda text: text[::-1]),
    ("add", "add ", lambda text: str(sum(map(int, text.split("+"))))),
    ("sort", "sort: ", lambda text: " ".join(sorted(text.split()))),
    ("max", "max: ", lambda text: str(max(map(int, text.split())))),
    ("first", "first: ", lambda text: text.split()[0]),
    ("last", "last: ", lambda text: text.split()[-1]),
    ("swapcase", "swapcase: ", str.swapcase),
    ("title", "title: ", str.title),
    ("double", "double: ", lambda text: text * 2),
    ("caesar", "caesar: ", lambda text: text.translate({i: (i - 96) % 26 + 97 for i in range(97, 123)})),
]


@pytest.mark.parametrize(("skill", "start", "solve"), WORKED, ids=[skill for skill, _, _ in WORKED])
def test_answers_are_what_the_instruction_asks_for(skill, start, solve):
    for question in questions(60, 1, skills=[skill]):
        assert question.text.startswith(start)
        assert question.answer == solve(question.text.removeprefix(start))


def test_every_skill_is_covered_by_a_worked_answer():
    assert {skill for skill, _, _ in WORKED} == {*PRESENT, *ABSENT}


def test_the_same_seed_gives_the_same_questions_and_another_seed_others():
    assert questions(100, 3) == questions(100, 3)
    assert {q.text for q in questions(100, 3)} != {q.text for q in questions(100, 4)}


def test_a_draw_is_free_of_repeats_and_of_excluded_texts():
    warm_up = questions(200, 1)
    asked = questions(300, 2, exclude={q.text for q in warm_up})
    texts = [q.text for q in [*warm_up, *asked]]
    assert len(set(texts)) == 500


def test_about_a_fifth_of_the_demo_mix_asks_for_facts():
    count = Counter(q.skill for q in questions(500, 5))
    assert set(count) == set(DEMO_MIX)
    assert 0.15 <= count[FACT] / 500 <= 0.25


def test_weights_name_the_share_of_each_skill():
    count = Counter(q.skill for q in questions(300, 1, skills=["upper", "sort"], weights={"upper": 3, "sort": 1}))
    assert 0.65 <= count["upper"] / 300 <= 0.85
    assert set(count) == {"upper", "sort"}


def test_fact_questions_ask_only_for_what_is_known():
    known = facts(40, 9)
    asked = questions(40, 1, skills=[FACT], known=known)
    assert {(q.text.partition(": ")[2], q.answer) for q in asked} == set(known)


def test_asking_for_more_facts_than_are_known_says_so():
    with pytest.raises(ValueError, match="fewer than 5"):
        questions(5, 1, skills=[FACT], known=facts(4, 9))


def test_what_the_demo_asks_is_never_in_the_training_part():
    held_out = [q for q in questions(300, 1) if q.skill != FACT]
    trained = [q for q in questions(300, 1, part="training") if q.skill != FACT]
    assert {part_of(q.text) for q in held_out} == {"held-out"}
    assert {part_of(q.text) for q in trained} == {"training"}


def test_facts_are_distinct_and_a_shorter_list_is_the_start_of_a_longer():
    known = facts(300, 7)
    assert len(dict(known)) == 300
    assert facts(20, 7) == known[:20]
    for key, value in known:
        kind = "code" if len(value) == 4 and value.isdigit() else "file"
        assert kind == "code" or "/" in value
        assert fact_question(key, value) == Question(FACT, f"{kind}: {key}", value)


@pytest.mark.parametrize(
    ("said", "right"), [(" 2 5\n9 ", True), ("2 5 9", True), ("2 5 9.", False), ("2 59", False), ("", False)]
)
def test_only_white_space_is_forgiven(said, right):
    assert is_right(said, Question("sort", "sort: 5 2 9", "2 5 9")) is right


def test_case_counts_when_normalised():
    assert normalise(" A  b\t") == "A b"
    assert not is_right("hello", Question("upper", "upper: hello", "HELLO"))


def test_a_corrupted_answer_is_never_right():
    rng = Random(1)
    for question in questions(400, 8):
        assert not is_right(corrupted(question.answer, rng), question)
