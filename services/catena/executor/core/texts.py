"""What is masked before a prompt or an answer is kept: what identifies a person or opens a door."""

import re
from collections.abc import Sequence
from dataclasses import replace

from catena.executor.core.chat import Message

_MASKS = (
    (re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+"), "[email]"),
    (re.compile(r"\b(?:sk|pk|ghp|xox[abp])[-_][A-Za-z0-9_-]{16,}"), "[key]"),
    (re.compile(r"\b(?:\d[ -]?){13,19}\b"), "[number]"),
)


def masked(text: str) -> str:
    """`text` without e-mail addresses, API keys and numbers as long as a card's."""
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    return text


def masked_turns(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Turns with their texts masked; images are not kept."""
    return tuple(replace(turn, content=masked(turn.content), images=()) for turn in turns)
