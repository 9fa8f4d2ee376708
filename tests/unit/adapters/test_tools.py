import json
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catena.adapters.core.tools import MAX_TOOLS, Calls, check_tools, demanded
from catena.adapters.core.work import Call, Piece, Tool
from catena.kit.errors import Invalid

WEATHER = Tool(name="weather", description="now", parameters='{"type": "object", "properties": {"city": {}}}')
TIME = Tool(name="time")
BOTH = (WEATHER, TIME)


def called(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def read(parts: list[str], finish: str = "stop", *, one: bool = False) -> tuple[str, list[Call], str]:
    """The text, calls and end of an answer that comes in these parts."""
    numbers = count(1)
    calls = Calls(BOTH, lambda: f"id{next(numbers)}", one=one)
    pieces = [calls(Piece(0, part)) for part in parts] + [calls(Piece(0, "", (), finish))]
    found = [(piece.first_call + n, call) for piece in pieces for n, call in enumerate(piece.calls)]
    assert [number for number, _ in found] == list(range(len(found)))
    return "".join(piece.text for piece in pieces), [call for _, call in found], pieces[-1].finish


PARIS, NOW = called("weather", '{"city": "Paris \\u00e9"}'), called("time", "{}")
READ = [
    (f"Let me see.\n{PARIS}", "Let me see.", ["weather"], "tool_calls"),
    (f"{PARIS}\n{NOW}\n", "", ["weather", "time"], "tool_calls"),
    (f"{PARIS} and {NOW}", " and", ["weather", "time"], "tool_calls"),
    ('\n{"name": "weather", "parameters": {"city": "Rome"}}', "", ["weather"], "tool_calls"),
    ('<tool_call>{"name": "time", "arguments": {}}', "", ["time"], "tool_calls"),
    ('{"name": "nobody", "arguments": {}}', '{"name": "nobody", "arguments": {}}', [], "stop"),
    (called("nobody", "{}"), called("nobody", "{}"), [], "stop"),
    ("<tool_call>not JSON</tool_call>", "<tool_call>not JSON</tool_call>", [], "stop"),
    ('{"answer": 42}', '{"answer": 42}', [], "stop"),
    ("a < b, <tool or not", "a < b, <tool or not", [], "stop"),
    ("  two words \n", "  two words \n", [], "stop"),
    ("", "", [], "stop"),
]


@pytest.mark.parametrize(("whole", "text", "names", "finish"), READ)
def test_calls_are_read_out_of_what_was_written_however_it_comes(
    whole: str, text: str, names: list[str], finish: str
) -> None:
    for size in (1, 2, 3, 7, len(whole) or 1):
        parts = [whole[at : at + size] for at in range(0, len(whole), size)]
        said, calls, ended = read(parts)
        assert (said.strip() if names else said) == (text.strip() if names else text)
        assert ([call.name for call in calls], ended) == (names, finish)


def test_arguments_are_as_the_model_wrote_them() -> None:
    (call,) = read([PARIS])[1]
    assert call == Call(id="call_id1", name="weather", arguments='{"city": "Paris \\u00e9"}')
    (quoted,) = read([called("weather", json.dumps('{"city": 1}'))])[1]
    assert quoted.arguments == '{"city": 1}'


def test_what_was_cut_off_is_no_call_and_stays_text() -> None:
    cut = '<tool_call>{"name": "time", "argu'
    assert read([cut], "length") == (cut, [], "length")


@given(st.text(alphabet='ab <>{}"\n/tol_ca', max_size=60), st.integers(1, 9))
def test_nothing_that_is_no_call_is_lost_or_changed(text: str, size: int) -> None:
    said, calls, _ = read([text[at : at + size] for at in range(0, len(text), size)])
    assert (said, calls) == (text, [])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_where_one_call_is_wanted_nothing_follows_it(size: int) -> None:
    whole = f"<tool_call>none</tool_call>Well. {PARIS}{NOW} and more <tool_call>"
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    said, calls, finish = read(parts, one=True)
    assert (said.strip(), [call.name for call in calls]) == ("<tool_call>none</tool_call>Well.", ["weather"])
    assert finish == "tool_calls"


def test_every_answer_is_read_by_itself() -> None:
    calls = Calls(BOTH, lambda: "id")
    pieces = [calls(Piece(index, half)) for half in (NOW[:20], NOW[20:]) for index in (0, 1)]
    assert [len(piece.calls) for piece in pieces] == [0, 0, 1, 1]
    assert calls(Piece(2, "plain")).text == "plain"


def test_a_demanded_call_is_of_one_of_the_tools() -> None:
    assert demanded(BOTH, "auto") is None
    one, all_ = demanded(BOTH, "time"), demanded(BOTH, "required")
    assert one is not None
    assert all_ is not None
    assert json.loads(one.json_schema)["properties"]["name"] == {"const": "time"}
    either = json.loads(all_.json_schema)["anyOf"]
    assert [schema["properties"]["name"]["const"] for schema in either] == ["weather", "time"]
    assert either[0]["properties"]["arguments"] == json.loads(WEATHER.parameters)


@pytest.mark.parametrize(
    ("tools", "choice", "told"),
    [
        ([Tool(name="no blanks")], "", "names no tool"),
        ([TIME, TIME], "", "two tools are called 'time'"),
        ([Tool(name=f"t{n}") for n in range(MAX_TOOLS + 1)], "", "give fewer"),
        ([Tool(name="t", description="x" * 300_000)], "", "shorten"),
        ([TIME], "weather", "known: time"),
        ([], "required", "no tool is given"),
    ],
)
def test_tools_that_cannot_be_told_are_refused(tools: list[Tool], choice: str, told: str) -> None:
    with pytest.raises(Invalid, match=told) as caught:
        check_tools(tools, choice)
    assert caught.value.code == "bad_tools"
