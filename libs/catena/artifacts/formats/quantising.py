"""A GGUF export held to a floor: written, measured in llama.cpp, and written a level up where it lost too much."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from catena.artifacts.formats.levels import Level, next_up
from catena.artifacts.formats.loss import Answers, Heard, Loss, ask, compare, prompts_of
from catena.artifacts.formats.models import Weights

Open = Callable[[Path], AbstractContextManager[Answers]]
"""Loads a GGUF file into a runtime for as long as the block lasts."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One level that was tried. `size_cut` is the share of the unquantised file's bytes that it saves."""

    level: Level
    bytes: int
    size_cut: float
    loss: Loss


class Quantised(msgspec.Struct, frozen=True, kw_only=True):
    """How an export came about; goes into its manifest. Without prompts nothing was measured and `attempts` is empty.

    `asked` is the level that was wished for, `level` the one that was kept.
    """

    asked: Level
    level: Level
    floor: float
    attempts: list[Attempt]


def export_quantised(
    weights: Weights,
    path: Path,
    *,
    level: Level,
    floor: float,
    prompts: Sequence[str],
    write: Callable[[Path, Level], None],
    open_model: Open,
) -> Quantised:
    """Write `path` at `level`, or the first level above that keeps the floor; `write` makes a file of a level.

    F32 is taken whatever it shows: nothing loses less. Raises what `write` and `open_model` raise.
    """
    if not prompts:
        write(path, level)
        return Quantised(asked=level, level=level, floor=floor, attempts=[])
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".reference-") as scratch:
        reference = Path(scratch) / "reference.gguf"
        write(reference, _own_level(weights))
        whole = reference.stat().st_size
        with open_model(reference) as model:
            tokens = prompts_of(model, prompts)
            heard = ask(model, tokens)
    attempts: list[Attempt] = []
    tried: Level | None = level
    while tried is not None:
        path.unlink(missing_ok=True)
        write(path, tried)
        loss = _measured(path, tokens, heard, open_model)
        size = path.stat().st_size
        attempts.append(Attempt(level=tried, bytes=size, size_cut=1 - size / whole, loss=loss))
        above = next_up(tried)
        if loss.top1_agreement >= floor or above is None:
            break
        tried = above
    return Quantised(asked=level, level=attempts[-1].level, floor=floor, attempts=attempts)


def _measured(path: Path, tokens: Sequence[Sequence[int]], heard: Heard, open_model: Open) -> Loss:
    with open_model(path) as model:
        return compare(heard, ask(model, tokens))


def _own_level(weights: Weights) -> Level:
    """The level in which nothing of the weights is lost."""
    held = {weights.info(name).dtype for name in weights.names()}
    if held == {"F16"}:
        return "F16"
    return "BF16" if held == {"BF16"} else "F32"
