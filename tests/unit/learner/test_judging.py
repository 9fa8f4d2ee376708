import math

import pytest

from catena.kit.errors import Invalid
from catena.learner.core.judging import MAX_TEXT, domain_of, enough, rows_of, sample_of, scored, slug
from catena.learner.core.records import Execution, Feedback, Sample

pytestmark = pytest.mark.unit
RAN = Execution(id="e", prompt="swap AbC", answer="abc", task="Swap Case!", agent_type="coder")


def told(**fields):
    return Feedback(**{"id": "f", "execution_id": "e", **fields})


@pytest.mark.parametrize(
    ("feedback", "thumbs", "cure"),
    [
        (told(execution_id="", score=1.0), 0, "execution_id"),
        (told(), 0, "give a score"),
        (told(score=1.5), 0, "1.5"),
        (told(score=-0.1), 0, "-0.1"),
        (told(score=math.nan), 0, "nan"),
        (told(score=math.inf), 0, "inf"),
        (told(), 2, "thumbs 2"),
        (told(correction="x" * (MAX_TEXT + 1)), 0, str(MAX_TEXT)),
        (told(comment="x" * (MAX_TEXT + 1)), 0, str(MAX_TEXT)),
        (told(score=1.0, prompt="x" * (MAX_TEXT + 1)), 0, str(MAX_TEXT)),
    ],
)
def test_bad_feedback_is_refused_with_the_value(feedback, thumbs, cure):
    with pytest.raises(Invalid, match=cure) as refused:
        scored(feedback, thumbs)
    assert refused.value.code == "bad_feedback"


@pytest.mark.parametrize(
    ("feedback", "thumbs", "score"),
    [
        (told(score=0.3), 1, 0.3),
        (told(score=0.0), 1, 0.0),
        (told(), 1, 1.0),
        (told(), -1, 0.0),
        (told(correction="aBc"), 0, 0.0),
        (told(correction="aBc", score=0.6), 0, 0.6),
        (told(comment="so so"), 0, None),
    ],
)
def test_a_score_wins_over_a_thumb_and_a_thumb_over_a_correction(feedback, thumbs, score):
    assert scored(feedback, thumbs).score == score


def test_a_correction_teaches_what_should_have_been_said():
    sample = sample_of(told(correction="aBc", score=0.0), RAN, 0.9)
    assert sample == Sample(task="swap-case", prompt="swap AbC", completion="aBc", corrected=True, agent_type="coder")


def test_praise_teaches_what_was_said():
    sample = sample_of(told(score=0.95), RAN, 0.9)
    assert sample is not None
    assert (sample.completion, sample.corrected) == ("abc", False)


@pytest.mark.parametrize("score", [None, 0.0, 0.9])
def test_neither_blame_nor_a_score_at_the_bar_teaches_anything(score):
    assert sample_of(told(score=score, comment="hm"), RAN, 0.9) is None


def test_feedback_may_bring_the_prompt_and_the_task_that_the_platform_did_not_keep():
    bare = Execution(id="e")
    assert sample_of(told(correction="aBc"), bare, 0.9) is None
    assert sample_of(told(correction="aBc", prompt="swap AbC"), bare, 0.9) is None
    sample = sample_of(told(correction="aBc", prompt="swap AbC", task="swap"), bare, 0.9)
    assert sample is not None
    assert (sample.task, sample.prompt) == ("swap", "swap AbC")


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("swap", "swap"),
        ("Swap Case!", "swap-case"),
        ("--a__b--", "a-b"),
        ("!!", ""),
        ("ä" * 3, ""),
        ("x" * 70, "x" * 63),
    ],
)
def test_a_task_becomes_a_name_that_adapters_and_domains_may_bear(task, name):
    assert slug(task) == name


@pytest.mark.parametrize(
    ("texts", "stack", "domain"),
    [
        (["an airflow pipeline into the warehouse"], [], "dataeng"),
        (["deploy it"], ["Kubernetes"], "devops"),
        (["a react page over one rest endpoint"], ["vue", "css"], "frontend"),
        (["sort a list"], [], "code"),
        (["the interest of restaurants"], [], "code"),
        (["next.js and typescript"], [], "frontend"),
    ],
)
def test_a_domain_is_the_one_whose_words_occur_most_and_the_stack_counts_three_times(texts, stack, domain):
    assert domain_of(texts, stack) == domain


def test_rows_depend_on_the_texts_and_not_on_their_order():
    one = Sample(task="t", prompt="p", completion="c", corrected=True)
    other = Sample(task="t", prompt="q", context="k", completion="d", corrected=False)
    rows = rows_of([one, other])
    assert rows == rows_of([other, one])
    assert sorted(rows.splitlines()) == [
        b'{"instruction":"q","input":"k","output":"d"}',
        b'{"prompt":"p","completion":"c"}',
    ]
    assert rows != rows_of([one])
    assert rows_of([]) == b""


@pytest.mark.parametrize(
    ("rows", "corrections", "worth"),
    [(99, 99, False), (100, 10, True), (100, 9, False), (300, 29, False), (300, 30, True)],
)
def test_enough_is_the_threshold_and_a_share_of_corrections(rows, corrections, worth):
    assert enough(rows, corrections, 100, 0.1) is worth
