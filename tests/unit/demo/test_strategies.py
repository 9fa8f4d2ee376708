"""What the tour prints of the strategies, from answers made up here."""

import io

import pytest
from rich.console import Console

from demo.desk import Asked
from demo.questions import questions
from demo.strategies import AUTO, FIXED, Outcome, oracle, show

pytestmark = pytest.mark.unit
ASKED = questions(4, 1)


def asked(number: int, *, right: bool, cost_usd: float) -> Asked:
    question = ASKED[number]
    return Asked(question=question, text=question.answer if right else "?", told={"cost_usd": cost_usd})


@pytest.fixture
def outcome() -> Outcome:
    """Row n costs n + 1 USD a question; the first row is wrong on every other one."""
    rows = {
        row.name: [asked(number, right=place > 0 or number % 2 == 0, cost_usd=place + 1.0) for number in range(4)]
        for place, row in enumerate((*FIXED, AUTO))
    }
    return Outcome(rows=rows)


def test_the_oracle_takes_the_cheapest_right_answer(outcome: Outcome) -> None:
    assert [(one.right, one.cost_usd) for one in oracle(outcome.rows)] == [(True, 1.0), (True, 2.0)] * 2


def test_the_table_says_what_its_columns_and_rows_mean(outcome: Outcome) -> None:
    told = io.StringIO()
    show(outcome, Console(file=told, width=140))
    lines = told.getvalue().splitlines()
    (row,) = [line for line in lines if line.startswith("│ sequential large")]
    assert [cell.strip() for cell in row.split("│")][4:6] == ["2000.0000", "100 %"]
    text = " ".join(told.getvalue().split())
    for note in (
        "USD/1k: dollars per 1000 questions;",
        "auto: the router with objective cost, which chooses among single models and the strategies above.",
        "A fifth of the questions need a fact from memory, which only search finds, by two calls",
        "oracle: the cheapest row that was right, question by question",
    ):
        assert note in text
