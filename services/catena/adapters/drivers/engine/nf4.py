"""A product whose weights are held in four bits, for `linear.Linear`: nf4 with quantised scales, by bitsandbytes.

The library is an extra of the distribution and imported when a base asks for it. On a CPU with bfloat16 instructions
its own layout is multiplied as it is, in bfloat16 whatever the type of the rows; elsewhere, and for shapes that this
layout does not take, weights are unpacked for every product. Source: QLoRA, arXiv 2305.14314, section 3.
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from catena.kit.errors import Invalid

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

BLOCK = 64
"""Weights of a row that share a scale."""
ROWS = 32
"""Outputs that the CPU's layout keeps together."""


class Nf4:
    """`x_TI` to `x W^T`, (T, O). W is several layers' weights one above the other, each quantised by itself."""

    __slots__ = ("_dtype", "_matmul", "_parts", "shape")

    def __init__(self, weights: Sequence[Tensor]) -> None:
        """Quantise. Raises Invalid (`no_bitsandbytes`) where the library is not installed."""
        functional = library().functional
        self.shape = (sum(weight_OI.shape[0] for weight_OI in weights), weights[0].shape[1])
        self._dtype = weights[0].dtype
        self._matmul = library().matmul_4bit
        made = [functional.quantize_4bit(w.contiguous(), quant_type="nf4", compress_statistics=True) for w in weights]
        whole = weights[0].device.type == "cpu" and not self.shape[0] % ROWS and not self.shape[1] % BLOCK and fuses()
        self._parts: list[tuple[Tensor, QuantState]] = [_joined(made, self.shape)] if whole else made

    def __call__(self, x_TI: Tensor) -> Tensor:
        """The product."""
        made: list[Tensor] = [self._matmul(x_TI, data, quant_state=state) for data, state in self._parts]
        return made[0] if len(made) == 1 else torch.cat(made, -1)

    def dense(self) -> Tensor:
        """The weights that the product stands for, (O, I)."""
        return self(torch.eye(self.shape[1], dtype=self._dtype, device=self._parts[0][0].device)).T.contiguous()

    @property
    def bytes(self) -> int:
        """Bytes held: weights, scales, and what unpacks them."""
        held = []
        for data, state in self._parts:
            held += [data, state.absmax, state.code]
            if state.nested:
                held += [state.state2.absmax, state.state2.code, state.offset]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def library() -> ModuleType:
    """The module bitsandbytes. Raises Invalid (`no_bitsandbytes`)."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise Invalid(
            "weights in nf4 need bitsandbytes, the extra `nf4`: pip install bitsandbytes, or take the base out of "
            "adapters.quantization",
            code="no_bitsandbytes",
        ) from error
    return bitsandbytes


@cache
def fuses() -> bool:
    """Whether this CPU multiplies bitsandbytes' layout, and to the same result as unpacked weights."""
    functional = library().functional
    if not functional.has_avx512bf16():
        return False
    try:
        generator = torch.Generator().manual_seed(0)
        weight_OI, x_TI = (torch.randn(size, 2 * BLOCK, generator=generator) for size in (2 * ROWS, 3))
        made = functional.quantize_4bit(weight_OI, quant_type="nf4", compress_statistics=True)
        wanted_TO = x_TI @ functional.dequantize_4bit(*made).T
        data, state = _joined([made], (2 * ROWS, 2 * BLOCK))
        got_TO = library().matmul_4bit(x_TI, data, quant_state=state)
        return bool((got_TO - wanted_TO).abs().max() <= 2e-2 * wanted_TO.abs().max())
    except (AttributeError, RuntimeError, TypeError, AssertionError, NotImplementedError):
        return False


def _joined(parts: Sequence[tuple[Tensor, "QuantState"]], shape: tuple[int, int]) -> tuple[Tensor, "QuantState"]:
    """The parts as one in the CPU's layout, which keeps scales in bfloat16 rather than quantised."""
    functional = library().functional
    scales = [functional.dequantize_blockwise(state.absmax, state.state2) + state.offset for _, state in parts]
    first = parts[0][1]
    state = functional.QuantState(
        absmax=torch.cat(scales),
        shape=torch.Size(shape),
        code=first.code,
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=first.dtype,
    )
    data = torch.cat([data.reshape(-1) for data, _ in parts])
    packed: tuple[Tensor, QuantState] = functional._convert_weight_packed_for_cpu(data, state)
    return packed
