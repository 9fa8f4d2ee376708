"""Tokens where no provider counted them: a call that was cancelled or cut is billed all the same."""

from dataclasses import dataclass, field, replace

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


def drafted_by(model: Model, drafting: Model | None, tokens: int) -> Model:
    """`model` with a drafter's price on its own, as if each of its tokens took `tokens` drafts: the dearest case."""
    if drafting is None:
        return model
    return replace(
        model,
        price_input=model.price_input + drafting.price_input,
        price_output=model.price_output + tokens * drafting.price_output,
    )


def read_with(request: ChatRequest, draft: str) -> ChatRequest:
    """What is read in all where a draft is verified first: the request and the draft, then both once more."""
    return replace(request, prompt=request.prompt + 2 * draft + " " * request.chars) if draft else request


def impossible(usage: Usage, chars_out: int) -> bool:
    """Whether no call can have used this: a part larger than its whole, less than nothing, or words without tokens."""
    cached = usage.cached_input_tokens + usage.cache_write_tokens
    parts = (
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
    )
    return (
        min(parts) < 0
        or cached > usage.input_tokens
        or usage.reasoning_tokens > usage.output_tokens
        or (chars_out > 0 and usage.output_tokens == 0)
    )


def affordable_tokens(model: Model, request: ChatRequest, left_usd: float, paces: Paces) -> int | None:
    """How many tokens may be written for `left_usd` after reading the request; None: no limit, 0: not even one."""
    expected = paces.guess(model.name, chars_in=request.chars, chars_out=0).input_tokens
    left = left_usd - expected * max(model.price_input, model.price_cache_write or 0.0) / MILLION
    dearest = max(model.price_output, model.price_reasoning or 0.0)
    if left <= 0:
        return 0 if model.price_input or dearest else None
    return int(left * MILLION / dearest) if dearest else None
