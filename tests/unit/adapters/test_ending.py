"""Where answers of the engine end, token by token, in the demo's own vocabulary."""

from pathlib import Path

import pytest

from catena.adapters.core.work import Sampling, Tool, Weights, Work
from catena.adapters.drivers.engine.answer import Answer
from catena.adapters.drivers.engine.text import Text

SMALL = Path(__file__).parents[3] / "demo" / "models" / "demo-small"
NOTHING = "<tool_call>nothing</tool_call>"
CALL = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(SMALL, lambda: 0.0)


def written(text: Text, words: str, *, one_call: bool, sampling: Sampling | None = None) -> tuple[str, str, bool]:
    """What an answer says of `words`, how it ended, and whether some of their tokens were never drawn."""
    tools = (Tool(name="time"),)
    work = Work(weights=Weights(base="b"), tools=tools, one_call=one_call, sampling=sampling or Sampling())
    answer = Answer(0, text, work)
    tokens = text.prompt(words)
    left = iter(tokens)
    for token in left:
        answer.take(token, -0.1, ())
        if answer.finish:
            break
    return "".join(piece.text for piece in answer.pieces), answer.finish, next(left, None) is not None


def test_an_answer_of_one_call_ends_with_it(text: Text) -> None:
    words = f"{NOTHING} first {CALL}\n{CALL}"
    assert written(text, words, one_call=True) == (f"{NOTHING} first {CALL}", "stop", True)
    assert written(text, words, one_call=False)[1:] == ("", False)


def test_what_must_be_long_ends_no_earlier(text: Text) -> None:
    words = f"{CALL} and so on"
    least = len(text.prompt(CALL)) + 2
    said, finish, left = written(text, words, one_call=True, sampling=Sampling(min_tokens=least))
    assert said.startswith(CALL)
    assert (finish, len(said) > len(CALL), left) == ("stop", True, True)
