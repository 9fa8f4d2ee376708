"""Conversations as token ids, with a mark on each token that the model is to learn.

Texts are encoded apart from what the chat template writes around them, so that no text can pass for a special token;
the serving side encodes in the same way.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from catena.kit.errors import Invalid
from catena.trainer.core.rows import Row, Turn


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation: `learned[i]` says whether token i is to be predicted."""

    tokens: list[int]
    learned: list[bool]


def encode_row(tokenizer: Any, row: Row) -> Encoded:
    """A whole row: every assistant's turn is learned, with the token that ends it."""
    encoded = _encode(tokenizer, row.turns, ask=False)
    if not _ends(tokenizer, encoded):
        encoded.tokens.append(tokenizer.eos_token_id)
        encoded.learned.append(True)
    return encoded


def encode_prompt(tokenizer: Any, turns: Sequence[Turn]) -> list[int]:
    """The tokens before an answer, up to where the assistant begins to speak."""
    return _encode(tokenizer, turns, ask=True).tokens


def _encode(tokenizer: Any, turns: Sequence[Turn], *, ask: bool) -> Encoded:
    nonce = secrets.token_hex(8)
    marked = [{"role": turn.role, "content": f"{nonce}:{i};"} for i, turn in enumerate(turns)]
    try:
        rest = str(tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=ask))
    except Exception as error:  # a template is foreign code that may raise anything
        raise Invalid(f"the base's chat template refuses a row: {error}; change the row's roles") from error
    made = Encoded([], [])
    said = False
    for turn, mark in zip(turns, marked, strict=True):
        before, found, rest = rest.partition(mark["content"])
        if not found:
            raise Invalid(f"the base's chat template leaves out a turn of role {turn.role!r}; change the row's roles")
        _add_template(tokenizer, made, before, said=said)
        said = turn.role == "assistant"
        ids = _ids(tokenizer, turn.content, special=False)
        made.tokens.extend(ids)
        made.learned.extend([said] * len(ids))
    _add_template(tokenizer, made, rest, said=said)
    return made


def _add_template(tokenizer: Any, made: Encoded, text: str, *, said: bool) -> None:
    """Add what the template wrote; after the assistant's words, all up to the token that ends the turn is learned."""
    special = set(tokenizer.all_special_ids)
    ids = _ids(tokenizer, text, special=True)
    end = next((i for i, token in enumerate(ids) if token in special), -1) if said else -1
    made.tokens.extend(ids)
    made.learned.extend(i <= end for i in range(len(ids)))


def _ends(tokenizer: Any, encoded: Encoded) -> bool:
    last = max((i for i, learned in enumerate(encoded.learned) if learned), default=-1)
    return last >= 0 and encoded.tokens[last] in set(tokenizer.all_special_ids)


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"])
