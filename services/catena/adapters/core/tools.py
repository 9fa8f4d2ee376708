"""Tools: which a model may be told of, what it must write when one is required, and the calls within what it wrote.

Models write calls in one of two forms, whatever their template: JSON between `<tool_call>` and `</tool_call>` (Hermes,
Qwen and most others), or an answer that is one JSON object from beginning to end (Llama 3). Both are read. What looks
like a call and is none stays text: nothing that a model wrote is lost.
"""

import json
import re
from collections.abc import Callable, Collection, Sequence

import msgspec

from catena.adapters.core.work import Call, Constraint, Piece, Tool
from catena.kit.errors import Invalid

MAX_TOOLS = 128
MAX_CHARS = 200_000
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z", re.ASCII)
OPEN, CLOSE = "<tool_call>", "</tool_call>"


class _Written(msgspec.Struct):
    """A call as models write it; Llama 3 calls the arguments parameters."""

    name: str
    arguments: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()


def check_tools(tools: Sequence[Tool], choice: str) -> None:
    """Raises Invalid (`bad_tools`) for tools that cannot be told, or a choice that none of them is."""
    if len(tools) > MAX_TOOLS:
        raise _bad(f"{len(tools)} tools > {MAX_TOOLS}; give fewer")
    names = [tool.name for tool in tools]
    for name in names:
        if not NAME.match(name):
            raise _bad(f"{name[:80]!r} names no tool; 1 to 64 of A-Z a-z 0-9 _ . : - are meant")
    if twice := {name for name in names if names.count(name) > 1}:
        raise _bad(f"two tools are called {min(twice)!r}; rename one")
    size = sum(len(tool.description) + len(tool.parameters) for tool in tools)
    if size > MAX_CHARS:
        raise _bad(f"the tools come to {size} characters > {MAX_CHARS}; shorten their descriptions")
    if choice not in ("", "auto", "none", "required", *names):
        raise _bad(f"tool_choice {choice[:80]!r} is none of the tools; known: {', '.join(names) or 'none'}")
    if choice == "required" and not tools:
        raise _bad("tool_choice is 'required' and no tool is given; give one")


def demanded(tools: Sequence[Tool], choice: str) -> Constraint | None:
    """What an answer must look like where a tool has to be called; None where it may be."""
    if choice in ("", "auto", "none"):
        return None
    calls = [_call_schema(tool) for tool in tools if choice in ("required", tool.name)]
    return Constraint(json_schema=json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls}))


def _call_schema(tool: Tool) -> dict[str, object]:
    arguments = json.loads(tool.parameters) if tool.parameters else {"type": "object", "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


class CallReader:
    """Reads one answer as it comes: its text, and the calls of known tools within it."""

    def __init__(self, names: Collection[str], new_id: Callable[[], str], *, one: bool = False) -> None:
        """`names` are the known tools'; `new_id` names a call that was found; `one`: nothing follows a call."""
        self.found = 0
        self._one = one
        self._names = names
        self._new_id = new_id
        self._held = ""
        self._blank = ""
        self._said = False

    def push(self, text: str) -> tuple[str, list[Call]]:
        """The text that can be shown now, and the calls that are whole now."""
        shown, calls = "", list[Call]()
        if self.whole:
            return shown, calls
        self._held += text
        while self._held and not self._may_be_bare():
            before, tag, rest = self._held.partition(OPEN)
            if not tag:
                keep = begun(self._held, OPEN)
                shown += self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                break
            inner, closed, after = rest.partition(CLOSE)
            shown, self._held = shown + before, tag + rest
            if not closed:
                break
            call, self._held = self._call(inner), after
            if call is not None:
                calls.append(call)
                self._held = "" if self._one else after
            else:
                shown += tag + inner + closed
        return self._show(shown), calls

    def end(self) -> tuple[str, list[Call]]:
        """What was held back: a call where all of it is one, else text."""
        held, bare = self._held, self._may_be_bare()
        self._held = ""
        call = self._call(held.removeprefix(OPEN)) if bare or held.startswith(OPEN) else None
        if call is not None:
            return "", [call]
        # White space around calls is not said to anybody.
        return ("" if self.found and not held.strip() else self._blank + held), []

    @property
    def whole(self) -> bool:
        """Whether the answer ends here, as only one call was wanted."""
        return self._one and self.found > 0

    def _show(self, text: str) -> str:
        """Text with the white space before it, which waits until something follows."""
        text, self._blank = self._blank + text, ""
        if text.strip():
            self._said = True
            return text
        self._blank = text
        return ""

    def _may_be_bare(self) -> bool:
        """Whether all that was written so far may be one JSON object, which is read at its end."""
        return not self._said and not self.found and self._held.lstrip()[:1] in ("{", "")

    def _call(self, text: str) -> Call | None:
        try:
            written = msgspec.json.decode(text.strip().encode(), type=_Written)
        except msgspec.DecodeError:
            return None
        if written.name not in self._names:
            return None
        arguments = bytes(written.arguments or written.parameters or b"{}").decode()
        if arguments.startswith('"'):
            # Some models write the arguments as a text that holds the JSON.
            arguments = msgspec.json.decode(arguments, type=str)
        self.found += 1
        return Call(id=f"call_{self._new_id().replace('-', '')}", name=written.name, arguments=arguments)


class Calls:
    """Reads the calls out of all answers to one question."""

    def __init__(self, tools: Sequence[Tool], new_id: Callable[[], str], *, one: bool = False) -> None:
        """As `CallReader`, for every answer one."""
        self._one = one
        self._names = frozenset(tool.name for tool in tools)
        self._new_id = new_id
        self._readers: dict[int, CallReader] = {}

    def __call__(self, piece: Piece) -> Piece:
        """The same piece, its calls apart from its text."""
        if piece.index not in self._readers:
            self._readers[piece.index] = CallReader(self._names, self._new_id, one=self._one)
        reader = self._readers[piece.index]
        first = reader.found
        text, calls = reader.push(piece.text)
        if piece.finish:
            left, more = reader.end()
            text, calls = text + left, calls + more
        finish = "tool_calls" if reader.found and piece.finish == "stop" else piece.finish
        return msgspec.structs.replace(piece, text=text, calls=tuple(calls), first_call=first, finish=finish)


def begun(text: str, word: str) -> int:
    """The length of the longest end of `text` with which `word` begins, short of all of it."""
    for size in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:size]):
            return size
    return 0


def _bad(message: str) -> Invalid:
    return Invalid(message, code="bad_tools")
