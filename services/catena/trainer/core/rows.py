"""Training rows: the three ways to write one, read strictly, and the split that keeps evaluation honest."""

import hashlib
from collections.abc import Sequence

import msgspec

from catena.kit.errors import Invalid

ROLES = ("system", "user", "assistant", "tool")


class BadRow(Invalid):
    """A row that cannot be trained on; the message names the source and the line."""

    default_code = "bad_row"


class Turn(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str


class Row(msgspec.Struct, frozen=True):
    """A conversation whose last turn is the assistant's; every assistant's turn is learned."""

    turns: tuple[Turn, ...]

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """What stands before the answer."""
        return self.turns[:-1]

    @property
    def answer(self) -> str:
        """What should be said."""
        return self.turns[-1].content


class _Pair(msgspec.Struct, forbid_unknown_fields=False):
    prompt: str
    completion: str
    system: str = ""


class _Instruction(msgspec.Struct, forbid_unknown_fields=False):
    instruction: str
    output: str
    input: str = ""
    system: str = ""


class _Chat(msgspec.Struct, forbid_unknown_fields=False):
    messages: list[Turn]


def read_rows(raw: bytes, where: str) -> tuple[Row, ...]:
    """The rows of JSON lines; empty lines are passed over.

    A row is {"messages": [{"role", "content"}, ...]}, {"prompt", "completion"} or {"instruction", "input", "output"}.
    Raises BadRow, naming the line, at the first that is none of these.
    """
    rows = []
    for number, line in enumerate(raw.splitlines(), 1):
        if line.strip():
            try:
                rows.append(_row(line))
            except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
                raise BadRow(f"{where}, line {number}: {error}; mend or remove it") from error
    return tuple(rows)


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Rows to train on and rows held out, about `share` of all; equal prompts stay on one side.

    At least one prompt is held out where there are two and `share` is above 0. The same rows and seed, the same split.
    """
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(_key(row, seed), []).append(row)
    wanted = share * len(rows)
    held: set[str] = set()
    count = 0
    for key in sorted(by_prompt):
        if share <= 0 or len(held) + 1 >= len(by_prompt) or (held and count + len(by_prompt[key]) > wanted):
            break
        held.add(key)
        count += len(by_prompt[key])
    kept = tuple(row for row in rows if _key(row, seed) not in held)
    return kept, tuple(row for row in rows if _key(row, seed) in held)


def without(rows: Sequence[Row], others: Sequence[Row]) -> tuple[Row, ...]:
    """The rows whose prompt none of `others` asks; so that no trusted question is trained on."""
    asked = {row.prompt for row in others}
    return tuple(row for row in rows if row.prompt not in asked)


def sample(rows: Sequence[Row], most: int, seed: int) -> tuple[Row, ...]:
    """At most `most` rows, the same ones for the same seed, in their order."""
    if len(rows) <= most:
        return tuple(rows)
    order = sorted(range(len(rows)), key=lambda i: hashlib.blake2b(f"{seed}:{i}".encode()).digest())
    return tuple(rows[i] for i in sorted(order[:most]))


def normalise(text: str) -> str:
    """The text with white space collapsed, for comparing answers; case counts, since some tasks are about case."""
    return " ".join(text.split())


def _row(line: bytes) -> Row:
    tree = msgspec.json.decode(line)
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, a JSON object is meant")
    if "messages" in tree:
        return _chat(msgspec.convert(tree, _Chat))
    if "completion" in tree:
        pair = msgspec.convert(tree, _Pair)
        return _plain(pair.system, pair.prompt, pair.completion)
    if "output" in tree:
        task = msgspec.convert(tree, _Instruction)
        asked = "\n".join(part for part in (task.instruction, task.input) if part)
        return _plain(task.system, asked, task.output)
    raise ValueError("it has neither messages, nor prompt and completion, nor instruction and output")


def _plain(system: str, asked: str, answer: str) -> Row:
    if not asked.strip():
        raise ValueError("the prompt is empty")
    start = (Turn("system", system),) if system else ()
    return _answered(Row((*start, Turn("user", asked), Turn("assistant", answer))))


def _chat(chat: _Chat) -> Row:
    for turn in chat.messages:
        if turn.role not in ROLES:
            raise ValueError(f"role {turn.role!r} is none of {', '.join(ROLES)}")
    if len(chat.messages) < 2 or chat.messages[-1].role != "assistant":
        raise ValueError("the last of at least two messages should be the assistant's")
    return _answered(Row(tuple(chat.messages)))


def _answered(row: Row) -> Row:
    if not row.answer.strip():
        raise ValueError("the answer is empty")
    return row


def _key(row: Row, seed: int) -> str:
    text = "\0".join(f"{turn.role}\1{turn.content}" for turn in row.prompt)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=str(seed).encode()).hexdigest()
