"""JSON out of the words that models put around it."""

from typing import Any

import msgspec

from catena.kit.errors import Invalid

_DECODER = msgspec.json.Decoder()


def extract_json(said: str) -> Any:
    """The first JSON object or array in a text, code fences and chatter around it ignored. Raises Invalid."""
    for start in _starts(said):
        end = _end(said, start)
        if end:
            try:
                return _DECODER.decode(said[start:end])
            except msgspec.DecodeError:
                continue
    raise Invalid("no JSON object or array in the text; ask the model for JSON", code="no_json")


def _starts(said: str) -> list[int]:
    return [place for place, letter in enumerate(said) if letter in "{["][:64]


def _end(said: str, start: int) -> int:
    """Where the bracket at `start` is closed, strings respected; 0: nowhere."""
    depth = 0
    quoted = escaped = False
    for place in range(start, len(said)):
        letter = said[place]
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
            if depth == 0:
                return place + 1
    return 0
