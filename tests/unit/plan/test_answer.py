import pytest

from catena.plan.answer import NAMES, answer_features, sureness

pytestmark = pytest.mark.unit

QUESTION = "Ann buys 3 pens at $4 each and pays with $20. How much change does she get?"


def told(answer):
    return dict(zip(NAMES, answer_features(QUESTION, answer), strict=True))


def test_sums_that_do_not_hold_are_seen_and_those_that_hold_are_not_held_against():
    right = told("3 pens cost 3 * 4 = 12. Change is 20 - 12 = 8.\n#### 8")
    wrong = told("3 pens cost 3 * 4 = 14. Change is 20 - 14 = 6.\n#### 6")
    assert right["equations"] == wrong["equations"] > 0.0
    assert right["wrong_equations"] == 0.0
    assert wrong["wrong_equations"] > 0.0


@pytest.mark.parametrize("sums", ["(2 + 3) * 4 = 20", "1,200 / 4 = 300", "10 / 3 = 3.33", "-5 + 8 = 3", "2 x 6 = 12"])
def test_plain_arithmetic_is_read_as_people_write_it(sums):
    assert told(sums)["equations"] > 0.0
    assert told(sums)["wrong_equations"] == 0.0


@pytest.mark.parametrize("hostile", ["9**9**9**9 = 1", "1 / 0 = 5", "((((( = 3", "(" * 59 + " = 1", "1 1 1 = 2"])
def test_what_is_no_plain_arithmetic_is_neither_run_nor_held_against_the_answer(hostile):
    assert told(hostile)["wrong_equations"] == 0.0


def test_the_marked_result_counts_and_not_the_last_number():
    figures = told("The answer is 8, which leaves her 20 - 12 = 8 of her 20")
    assert figures["marked_result"] == 1.0
    assert figures["result_was_given"] == 0.0
    assert told("#### 20")["result_was_given"] == 1.0


def test_an_empty_answer_has_no_features():
    assert answer_features(QUESTION, "  \n") == ()


def test_sureness_is_the_logistic_of_the_reading_and_nothing_where_they_do_not_fit():
    features = answer_features(QUESTION, "#### 8")
    flat = (0.0,) * len(features)
    assert sureness(features, (0.0, *flat)) == 0.5
    assert sureness(features, (2.0, *flat)) == pytest.approx(0.8808, abs=1e-4)
    assert sureness(features, (2.0, 1.0)) is None
    assert sureness((), (2.0, *flat)) is None


def test_a_huge_answer_is_read_in_no_time_and_a_huge_number_is_no_error():
    assert told("7" * 5000 + " = " + "9" * 5000)["magnitude"] > 0.0
    assert told("1 + 1 = 2 " * 5000)["equations"] > 0.0


def test_the_result_at_the_end_of_a_long_answer_is_found():
    long = "Let us see. " * 2000 + "3 * 4 = 13 and the answer is 8"
    assert told(long)["marked_result"] == 1.0
    assert told(long)["wrong_equations"] > 0.0
    assert told(long)["length"] > told("#### 8")["length"] + 5.0
