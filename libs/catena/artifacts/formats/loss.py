"""What a change of weights costs, measured on prompts: how often the likeliest token stays, how far logits move."""

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from catena.artifacts.formats.llama_cpp import Guess
from catena.kit.errors import Invalid

POSITIONS = 16
TOP = 256
WRITTEN = 32


class Answers(Protocol):
    """A model as it is asked here; `LlamaCpp` is one."""

    def tokens(self, text: str) -> list[int]:
        """The text's tokens."""

    def guess(self, tokens: Sequence[int], top: int) -> Guess:
        """The likeliest tokens after these."""

    def tokens_per_s(self, tokens: Sequence[int], count: int) -> float:
        """The speed of writing."""


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """Measured at `positions` places of the prompts, against the unquantised model in the same runtime.

    `top1_agreement` is the share of places where the likeliest token is the same. `logit_rms` and `logit_max` are
    differences of log-probabilities over the tokens that both name, in nats. `speed_gain` is the ratio of tokens
    written per second to the unquantised file's, on one thread of the machine that measured.
    """

    positions: int
    top1_agreement: float
    logit_rms: float
    logit_max: float
    speed_gain: float


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What a model said to all prompts."""

    guesses: list[Guess]
    tokens_per_s: float


def prompts_of(model: Answers, texts: Sequence[str]) -> list[list[int]]:
    """The prompts as tokens. Raises Invalid (`no_prompts`) when they hold none."""
    found = [tokens for tokens in (model.tokens(text) for text in texts) if tokens]
    if not found:
        raise Invalid("the prompts are empty; give at least one line of text", code="no_prompts")
    return found


def ask(model: Answers, prompts: Sequence[Sequence[int]]) -> Heard:
    """Ask after the last positions of every prompt; the same for every model that is to be compared."""
    guesses = [
        model.guess(tokens[:end], TOP)
        for tokens in prompts
        for end in range(max(1, len(tokens) - POSITIONS + 1), len(tokens) + 1)
    ]
    longest = max(prompts, key=len)
    return Heard(guesses=guesses, tokens_per_s=model.tokens_per_s(longest, WRITTEN))


def compare(reference: Heard, changed: Heard) -> Loss:
    """What was lost from one to the other."""
    pairs = list(zip(reference.guesses, changed.guesses, strict=True))
    moved = np.concatenate([_moved(before, after) for before, after in pairs])
    return Loss(
        positions=len(pairs),
        top1_agreement=sum(int(a.ids[0] == b.ids[0]) for a, b in pairs) / len(pairs),
        logit_rms=float(np.sqrt((moved**2).mean())),
        logit_max=float(np.abs(moved).max()),
        speed_gain=changed.tokens_per_s / reference.tokens_per_s if reference.tokens_per_s else 0.0,
    )


def _moved(before: Guess, after: Guess) -> NDArray[np.float64]:
    _, ours, theirs = np.intersect1d(before.ids, after.ids, return_indices=True)
    if not len(ours):
        return np.array([float(before.logprobs[0] - after.logprobs[-1])])
    return after.logprobs[theirs] - before.logprobs[ours]
