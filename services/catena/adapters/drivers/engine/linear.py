"""A linear layer with fixed weights, laid out for the processor where that pays.

oneDNN's packed layout makes products of few rows two to three times as fast on a CPU as the plain one. Its operators
are private to torch, so they are tried once, against the plain product, before they are trusted. Weights
in four bits are `nf4`'s.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from catena.adapters.drivers.engine.nf4 import Nf4

BATCH_HINT = 16
"""Rows that the packed layout is made for; it serves any number."""


class Linear:
    """`x_TI` to `x W^T + bias`, (T, O); holds the weights once: packed, plain or in four bits."""

    __slots__ = ("_packed", "_weight", "bias_O", "inputs", "outputs")

    def __init__(self, weight_OI: Tensor | Nf4, bias_O: Tensor | None = None) -> None:
        """Take the weights; the caller should let go of its own."""
        self.outputs, self.inputs = weight_OI.shape
        self.bias_O = bias_O
        self._packed = False
        self._weight = weight_OI
        if isinstance(weight_OI, Tensor) and weight_OI.device.type == "cpu" and packs(weight_OI.dtype):
            self._packed, self._weight = True, _pack(weight_OI.contiguous())

    def __call__(self, x_TI: Tensor) -> Tensor:
        """The product."""
        if isinstance(self._weight, Nf4):
            y_TO = self._weight(x_TI)
            return y_TO if self.bias_O is None else y_TO.add_(self.bias_O)
        if self._packed:
            return _packed_product(x_TI, self._weight, self.bias_O)
        return functional.linear(x_TI, self._weight, self.bias_O)

    def weight(self) -> Tensor:
        """The weights, (O, I); a copy when they are packed or in four bits."""
        if isinstance(self._weight, Nf4):
            return self._weight.dense()
        return self._weight.to_dense() if self._packed else self._weight

    def shares(self, weight_OI: Tensor) -> bool:
        """Whether these very weights are held here."""
        mine = self._weight
        return isinstance(mine, Tensor) and not self._packed and mine.data_ptr() == weight_OI.data_ptr()

    @property
    def bytes(self) -> int:
        """Bytes held."""
        bias = 0 if self.bias_O is None else self.outputs * self.bias_O.dtype.itemsize
        if isinstance(self._weight, Nf4):
            return self._weight.bytes + bias
        return self.outputs * self.inputs * self._weight.dtype.itemsize + bias


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether this torch packs weights of this type and multiplies them as it multiplies plain ones."""
    try:
        generator = torch.Generator().manual_seed(0)
        weight_OI = torch.randn(48, 32, generator=generator).to(dtype)
        x_TI = torch.randn(3, 32, generator=generator).to(dtype)
        packed = _pack(weight_OI)
        same = torch.allclose(_packed_product(x_TI, packed, None), functional.linear(x_TI, weight_OI), rtol=1e-2)
        return same and torch.equal(packed.to_dense(), weight_OI)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False


def _pack(weight_OI: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI, BATCH_HINT)
    return packed


def _packed_product(x_TI: Tensor, packed: Tensor, bias_O: Tensor | None) -> Tensor:
    y_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, packed, bias_O, "none", [], "")
    return y_TO
