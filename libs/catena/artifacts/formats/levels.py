"""Levels of precision of a GGUF base, from small to exact, and which type each of them gives a tensor.

A level is llama.cpp's recipe of that name. Rows that do not divide into a type's blocks fall back to the nearest larger
type that fits; vectors stay F32.
"""

from typing import Literal, get_args

from catena.artifacts.formats.gguf_file import fits_blocks
from catena.kit.errors import Invalid

Level = Literal["Q4_0", "Q4_K_M", "Q5_0", "Q6_K", "Q8_0", "F16", "BF16", "F32"]
LEVELS: tuple[Level, ...] = get_args(Level)
LADDER: tuple[Level, ...] = ("Q4_K_M", "Q6_K", "Q8_0", "F16", "F32")
"""Where to go when a level loses too much."""
FILE_TYPE = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "Q4_K_M": 15, "Q6_K": 18, "BF16": 32}
FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0", "Q4_0": "F16", "Q5_0": "F16", "Q8_0": "F16"}


def level_of(name: str) -> Level:
    """A level by its name in any case. Raises Invalid (`unknown_level`)."""
    for level in LEVELS:
        if level == name.upper():
            return level
    raise Invalid(f"unknown level {name!r}; there are {', '.join(LEVELS)}", code="unknown_level")


def next_up(level: Level) -> Level | None:
    """The next level that loses less, None above all."""
    stronger = {"Q4_0": "Q4_K_M", "Q5_0": "Q6_K", "BF16": "F32"}.get(level)
    if stronger is not None:
        return level_of(stronger)
    at = LADDER.index(level) + 1
    return LADDER[at] if at < len(LADDER) else None


def type_of(level: Level, name: str, shape: tuple[int, ...], *, layers: int, tied: bool) -> str:
    """The type in which a tensor, by llama.cpp's name, is stored at a level."""
    if len(shape) < 2:
        return "F32"
    wanted: str = level
    if level == "Q4_K_M":
        wanted = "Q6_K" if _delicate(name, layers, tied=tied) else "Q4_K"
    elif level in ("Q4_0", "Q5_0") and _is_head(name, tied=tied):
        wanted = "Q6_K"
    while not fits_blocks(shape[-1], wanted):
        wanted = FALLBACK[wanted]
    return wanted


def _delicate(name: str, layers: int, *, tied: bool) -> bool:
    """The head, and values and second feed-forward matrices of the first and last eighth and every third layer."""
    if _is_head(name, tied=tied):
        return True
    if not name.endswith(("attn_v.weight", "ffn_down.weight")):
        return False
    layer = int(name.split(".")[1])
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _is_head(name: str, *, tied: bool) -> bool:
    return name == ("token_embd.weight" if tied else "output.weight")
