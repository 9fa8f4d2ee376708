"""Quantisers for GGUF's K-blocks, Q4_K and Q6_K, which `gguf` can read but not write.

A super-block holds 256 values. Q4_K: eight sub-blocks of 32, each value is d * scale * q - dmin * minimum with four
bits of q and six of scale and minimum. Q6_K: sixteen sub-blocks of 16, each value is d * scale * (q - 32) with six bits
of q and eight of scale. Layouts: ggml's block definitions, as `gguf.quants` decodes them.

Each sub-block tries several scales around the obvious one, refits it by weighted least squares and keeps the best;
large values weigh more, since they carry more of a product.

Legend: N super-blocks, S sub-blocks, V values of a sub-block.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catena.artifacts.formats.arrays import Floats

BLOCK = 256
AT_ONCE = 2048
"""Super-blocks per pass: keeps the temporaries within the cache of a core."""

Bytes = NDArray[np.uint8]
TINY = 1e-30


def quantise_q4_k(values: Floats) -> Bytes:
    """Rows of a multiple of 256 values as Q4_K, 144 bytes per 256."""
    return _in_passes(values, _q4_k)


def quantise_q6_k(values: Floats) -> Bytes:
    """Rows of a multiple of 256 values as Q6_K, 210 bytes per 256."""
    return _in_passes(values, _q6_k)


def _in_passes(values: Floats, quantise: Callable[[Floats], Bytes]) -> Bytes:
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, BLOCK)
    made = np.concatenate([quantise(blocks[at : at + AT_ONCE]) for at in range(0, len(blocks), AT_ONCE)])
    return made.reshape(*values.shape[:-1], -1)


def _q4_k(x: Floats) -> Bytes:
    count = len(x)
    x_NSV = x.reshape(count, 8, 32)
    scale_NS, minimum_NS = _fit_range(x_NSV, levels=15)
    d_N, scale6_NS = _shared(scale_NS, levels=63)
    dmin_N, minimum6_NS = _shared(minimum_NS, levels=63)
    step_NS = _wide(d_N) * scale6_NS
    offset_NS = _wide(dmin_N) * minimum6_NS
    q = np.rint((x_NSV + offset_NS[..., None]) * _inverse(step_NS)[..., None]).clip(0, 15).astype(np.uint8)
    q = q.reshape(count, 4, 2, 32)
    parts = (_raw(d_N), _raw(dmin_N), _pack_six(scale6_NS, minimum6_NS), (q[:, :, 0] | q[:, :, 1] << 4))
    return np.concatenate([part.reshape(count, -1) for part in parts], axis=1)


def _q6_k(x: Floats) -> Bytes:
    count = len(x)
    x_NSV = x.reshape(count, 16, 16)
    scale_NS = _fit_symmetric(x_NSV, levels=32)
    widest = np.take_along_axis(scale_NS, np.abs(scale_NS).argmax(1)[:, None], 1)
    # The widest scale takes the one value that int8 has more on its negative side.
    d_N = (widest / -128).astype(np.float16)
    scale8_NS = np.rint(scale_NS * _inverse(d_N.astype(np.float32))).clip(-128, 127)
    step_NS = d_N.astype(np.float32) * scale8_NS
    q = np.rint(x_NSV * _inverse(step_NS)[..., None]).clip(-32, 31) + 32
    q = q.astype(np.uint8).reshape(count, 2, 4, 32)
    low, high = q & 15, q >> 4
    ql = low[:, :, :2] | low[:, :, 2:] << 4
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = (ql, qh, scale8_NS.astype(np.int8).view(np.uint8), _raw(d_N))
    return np.concatenate([part.reshape(count, -1) for part in parts], axis=1)


def _fit_symmetric(x_NSV: Floats, *, levels: int) -> Floats:
    """Scales s that keep sum of x^2 (x - s q)^2 small, q from -levels to levels - 1; (N, S)."""
    extreme = np.take_along_axis(x_NSV, np.abs(x_NSV).argmax(2)[..., None], 2)
    weight = x_NSV * x_NSV
    weighted = weight * x_NSV
    best = np.zeros(x_NSV.shape[:2], np.float32)
    gained = np.full(x_NSV.shape[:2], -1.0, np.float32)
    for shift in np.arange(-0.9, 0.95, 0.1, dtype=np.float32):
        q = np.rint(x_NSV * (-(levels + shift) * _inverse(extreme))).clip(-levels, levels - 1)
        product = np.einsum("nsv,nsv->ns", weighted, q)
        square = np.einsum("nsv,nsv,nsv->ns", weight, q, q, optimize=False)
        scale = product * _inverse(square)
        better = product * scale > gained
        best, gained = np.where(better, scale, best), np.where(better, product * scale, gained)
    return best


def _fit_range(x_NSV: Floats, *, levels: int) -> tuple[Floats, Floats]:
    """Scales s and minima m >= 0 that keep the weighted error of s q - m small, q from 0 to levels; (N, S) each."""
    lowest = np.minimum(x_NSV.min(2), 0)
    spread = np.maximum(x_NSV.max(2), 0) - lowest
    weight = np.sqrt((x_NSV * x_NSV).mean(2, keepdims=True)) + np.abs(x_NSV)
    sums = weight.sum(2), (weight * x_NSV).sum(2)
    best, least, error = spread / levels, -lowest, np.full(spread.shape, np.inf, np.float32)
    for shift in np.arange(-1.0, 1.05, 0.1, dtype=np.float32):
        q = np.rint((x_NSV - lowest[..., None]) * ((levels + shift) * _inverse(spread))[..., None]).clip(0, levels)
        scale, minimum = _least_squares(x_NSV, q, weight, sums)
        left = x_NSV - scale[..., None] * q + minimum[..., None]
        found = np.einsum("nsv,nsv,nsv->ns", weight, left, left, optimize=False)
        better = found < error
        best, least = np.where(better, scale, best), np.where(better, minimum, least)
        error = np.where(better, found, error)
    return best, least


def _least_squares(x: Floats, q: Floats, weight: Floats, sums: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """The scale and minimum that fit x = scale q - minimum best for given q; a negative minimum is held at 0."""
    total, total_x = sums
    weighted = weight * q
    total_q = weighted.sum(2)
    total_qq = np.einsum("nsv,nsv->ns", weighted, q)
    total_qx = np.einsum("nsv,nsv->ns", weighted, x)
    spread = total * total_qq - total_q * total_q
    scale = (total * total_qx - total_x * total_q) * _inverse(spread)
    minimum = (total_q * total_qx - total_qq * total_x) * _inverse(spread)
    plain = total_qx * _inverse(total_qq)
    usable = (spread > TINY) & (minimum > 0) & (scale > 0)
    return np.where(usable, scale, np.maximum(plain, 0)), np.where(usable, minimum, 0)


def _shared(values_NS: Floats, *, levels: int) -> tuple[NDArray[np.float16], Floats]:
    """Non-negative values of sub-blocks as one float16 per super-block, (N, 1), times integers up to `levels`."""
    d_N = (values_NS.max(1, keepdims=True) / levels).astype(np.float16)
    return d_N, np.rint(values_NS * _inverse(_wide(d_N))).clip(0, levels)


def _pack_six(scale_NS: Floats, minimum_NS: Floats) -> Bytes:
    """Eight pairs of six bits in twelve bytes: four pairs whole, the others' high bits in the spare ones of those."""
    s, m = scale_NS.astype(np.uint8), minimum_NS.astype(np.uint8)
    first = s[:, :4] | s[:, 4:] >> 4 << 6
    second = m[:, :4] | m[:, 4:] >> 4 << 6
    return np.concatenate([first, second, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4], axis=1)


def _inverse(values: Floats) -> Floats:
    safe = np.abs(values) > TINY
    return np.where(safe, 1 / np.where(safe, values, 1), 0).astype(np.float32)


def _wide(values: NDArray[np.float16]) -> Floats:
    return values.astype(np.float32)


def _raw(values: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(values).view(np.uint8)
