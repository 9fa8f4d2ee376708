"""Text to tokens and back. Only the chat template's own words can become special tokens, never a user's."""

import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from catena.adapters.core.tools import begun
from catena.adapters.core.work import Message, Tool
from catena.adapters.drivers.engine.template import read_json, read_template
from catena.adapters.drivers.engine.turns import Turn, function, known, plain
from catena.kit.errors import Invalid

if TYPE_CHECKING:
    from catena.adapters.drivers.engine.grammar import Grammars

HELD_TOKENS = 8
"""A character is spread over at most four tokens; beyond this many the bytes will never become one."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Text:
    """A base's tokenizer, chat template, generation defaults, and the grammars compiled for its vocabulary."""

    def __init__(self, folder: Path, now: Callable[[], float]) -> None:
        """Read them from a base folder; `now`, in seconds since the epoch, is for templates that write the date.

        Raises Invalid when the tokenizer has no fast form.
        """
        path = folder / "tokenizer.json"
        if not path.exists():
            raise Invalid(f"{folder.name} has no tokenizer.json; save its fast tokenizer", code="unsupported_tokenizer")
        self._fast = Tokenizer.from_file(str(path))
        self._fast.no_padding()
        self._fast.no_truncation()
        self._fast.encode_special_tokens = True
        self._render = read_template(folder, now)
        added = self._fast.get_added_tokens_decoder()
        self._special = {token.content: (number, token) for number, token in added.items() if token.special}
        words = sorted(map(re.escape, self._special), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(words)})") if words else re.compile(r"(?!)")
        # Unknown to callers, so that no text of theirs can stand for another's.
        self._nonce = secrets.token_hex(8)
        self._marks = re.compile(rf"{self._nonce}[0-9a-f]+z")
        vocabulary = sorted(self._fast.get_vocab(with_added_tokens=True).items())
        self.fingerprint = sha256(repr(vocabulary).encode()).hexdigest()
        self.ends, self.temperature = _defaults(folder, self._fast)
        self._texts: dict[int, str] = {}

    @cached_property
    def grammars(self) -> "Grammars":
        """What compiles constraints. Made when first asked for: it needs torch, which is the engine's alone."""
        from catena.adapters.drivers.engine.grammar import Grammars

        return Grammars(self._fast, self.ends)

    def chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """The conversation as the template writes it, ready for the assistant's turn, with the tools that there are.

        Texts take part in tokenisation exactly as in the whole, but a special token's name in them stays plain text.
        Raises Invalid (`no_chat_template`, `bad_messages`, `bad_tools`).
        """
        turns, told = self._turns(messages, tools)
        marks = [f"{self._nonce}{number:x}z" if turn.spoken else "" for number, turn in enumerate(turns)]
        marked = [{"role": t.role, "content": mark, **t.more} for t, mark in zip(turns, marks, strict=True)]
        whole = self._rendered(marked, told)
        contents = {mark: turn.content for mark, turn in zip(marks, turns, strict=True)}
        if lost := [turn.role for mark, turn in zip(marks, turns, strict=True) if mark not in whole]:
            raise Invalid(f"the chat template drops a {lost[0]} message; send it in another role", code="bad_messages")
        ids: list[int] = []
        strip = False
        for part in self._split.split(whole):
            if part in self._special:
                number, token = self._special[part]
                ids.append(number)
                strip = token.rstrip
            elif part:
                text = part.lstrip() if strip else part
                ids += self._ids(self._marks.sub(lambda found: contents[found[0]], text))
        return ids

    def prompt(self, text: str) -> list[int]:
        """Raw text, after whatever token the tokenizer starts a text with."""
        return list(self._fast.encode(text, add_special_tokens=True).ids)

    def check_tokens(self, numbers: Iterable[int]) -> None:
        """Raises Invalid (`bad_sampling`) for a number that is no token of this vocabulary."""
        for number in numbers:
            if self._fast.id_to_token(number) is None:
                size = self._fast.get_vocab_size(with_added_tokens=True)
                raise Invalid(f"logit_bias names token {number}; this model has {size} tokens", code="bad_sampling")

    def token(self, number: int) -> str:
        """A token's own text, possibly part of a character."""
        if number not in self._texts:
            self._texts[number] = self._fast.decode([number], skip_special_tokens=False)
        return self._texts[number]

    def spread(self, count: int) -> list[int]:
        """Up to `count` tokens from all over the vocabulary: a prompt that means nothing, for probes."""
        size = self._fast.get_vocab_size(with_added_tokens=True)
        return list(range(0, size, max(size // count, 1)))[:count]

    def whole(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """The conversation as text, for engines that take no tokens. Raises as `chat` does."""
        turns, told = self._turns(messages, tools)
        return self._rendered([{"role": turn.role, "content": turn.content, **turn.more} for turn in turns], told)

    def read(self, text: str) -> list[int]:
        """The tokens of a text in which names of special tokens are special tokens, as other engines read it."""
        return list(self._open.encode(text, add_special_tokens=True).ids)

    @cached_property
    def _open(self) -> Tokenizer:
        fast = Tokenizer.from_str(self._fast.to_str())
        fast.encode_special_tokens = False
        return fast

    def stream(self, *, exact: bool = False) -> "TextStream":
        """A fresh decoder for one answer; `exact`: a blank at its beginning stays, where some tokenizers drop it."""
        before = self._ids("a") if exact else []
        return TextStream(lambda ids: self._fast.decode(ids, skip_special_tokens=True), before)

    def _turns(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Turn], list[dict[str, Any]]]:
        """The turns, and the tools that the template itself is to write."""
        if self._render is None or not self._render.knows_tools:
            return plain(messages, tools), []
        turns, told = known(messages), [function(tool) for tool in tools]
        # The template writes these itself, so that a special token's name in them would become that token.
        if found := self._split.search(json.dumps([told, *(turn.more for turn in turns)], ensure_ascii=False)):
            raise Invalid(f"{found[0]!r} in tools or calls is a special token here; leave it out", code="bad_tools")
        return turns, told

    def _rendered(self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        if self._render is None:
            raise Invalid("this base has no chat template; ask for a completion instead", code="no_chat_template")
        return self._render(turns, tools)

    def _ids(self, text: str) -> list[int]:
        return list(self._fast.encode(text, add_special_tokens=False).ids)


class TextStream:
    """Tokens to text as they come; a character that is spread over tokens appears when it is whole."""

    __slots__ = ("_decode", "_ids", "_read", "_shown")

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int] = ()) -> None:
        """`decode` turns token ids into text; `before` are tokens that were shown already."""
        self._decode = decode
        # The last shown tokens stay, since some tokenizers write a token differently at the start of a text.
        self._ids: list[int] = list(before)
        self._read = len(self._ids)
        self._shown = decode(self._ids) if before else ""

    def push(self, token: int) -> str:
        """What can be shown after `token`; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT) and len(self._ids) - self._read < HELD_TOKENS:
            return ""
        return self._show(text)

    def end(self) -> str:
        """What is left when no token follows."""
        return self._show(self._decode(self._ids)) if len(self._ids) > self._read else ""

    def _show(self, text: str) -> str:
        new = text[len(self._shown) :]
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        self._shown = self._decode(self._ids)
        return new


class StopWatch:
    """Finds stop texts in a stream, and holds back what may be the beginning of one."""

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are the texts that end the answer."""
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What may be shown; sets `stopped` when a stop text is complete, which is itself not shown."""
        if not self._stops:
            return text
        held = self._held + text
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)]
        keep = max(begun(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> str:
        """What was held back in vain."""
        held, self._held = self._held, ""
        return held


def _defaults(folder: Path, tokenizer: Tokenizer) -> tuple[frozenset[int], float]:
    """Tokens that end an answer, and the temperature when none is given: 0 unless the model asks to be sampled."""
    ends: set[int] = set()
    given = read_json(folder / "generation_config.json")
    for named in (given.get("eos_token_id"), read_json(folder / "config.json").get("eos_token_id")):
        ends |= set(named) if isinstance(named, list) else {named} if isinstance(named, int) else set()
    token = read_json(folder / "tokenizer_config.json").get("eos_token")
    own = tokenizer.token_to_id(str(token["content"] if isinstance(token, dict) else token)) if token else None
    ends |= {own} if own is not None else set()
    return frozenset(ends), float(given.get("temperature") or 1.0) if given.get("do_sample") else 0.0
