"""Tokens where no provider counted them: a call that was cancelled or cut is billed all the same."""

from dataclasses import dataclass, field

from catena.executor.core.catalogue import MILLION, Model
from catena.executor.core.chat import ChatRequest, Usage

CHARS_PER_TOKEN = 4.0


@dataclass(slots=True)
class Pace:
    """Characters and tokens counted so far for one model, both directions together."""

    chars: int = 0
    tokens: int = 0

    def per_char(self) -> float:
        """Tokens a character; a quarter until something was counted."""
        return self.tokens / self.chars if self.chars else 1 / CHARS_PER_TOKEN


@dataclass(slots=True)
class Paces:
    """What was counted by model; learned from every call that told its usage."""

    by_model: dict[str, Pace] = field(default_factory=dict)

    def learn(self, model: str, chars: int, usage: Usage) -> None:
        """Count a call of which both are known."""
        tokens = usage.input_tokens + usage.output_tokens
        if chars and tokens:
            pace = self.by_model.setdefault(model, Pace())
            pace.chars += chars
            pace.tokens += tokens

    def guess(self, model: str, *, chars_in: int, chars_out: int) -> Usage:
        """The probable tokens of a call that read and wrote so many characters."""
        rate = self.by_model.get(model, Pace()).per_char()
        return Usage(input_tokens=round(chars_in * rate), output_tokens=round(chars_out * rate))


def affordable_tokens(model: Model, request: ChatRequest, left_usd: float, paces: Paces) -> int | None:
    """How many tokens may be written for `left_usd` after reading the request; None: no limit, 0: not even one."""
    expected = paces.guess(model.name, chars_in=request.chars, chars_out=0).input_tokens
    left = left_usd - expected * model.price_input / MILLION
    if left <= 0:
        return 0 if model.price_input or model.price_output else None
    return int(left * MILLION / model.price_output) if model.price_output else None
