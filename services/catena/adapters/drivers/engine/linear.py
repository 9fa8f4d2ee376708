"""A linear layer with fixed weights, laid out for the processor where that pays.

oneDNN's packed layout makes products of few rows two to three times as fast on a CPU as the plain one. Its operators
are private to torch, so they are tried once, against the plain product, before they are trusted.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

BATCH_HINT = 16
"""Rows that the packed layout is made for; it serves any number."""


class Linear:
    """`x_TI` to `x W^T + bias`, (T, O); holds the weights once, packed or plain."""

    __slots__ = ("_packed", "_weight", "bias_O", "inputs", "outputs")

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        """Take the weights; the caller should let go of its own."""
        self.outputs, self.inputs = weight_OI.shape
        self.bias_O = bias_O
        self._packed = weight_OI.device.type == "cpu" and packs(weight_OI.dtype)
        self._weight = _pack(weight_OI.contiguous()) if self._packed else weight_OI

    def __call__(self, x_TI: Tensor) -> Tensor:
        """The product."""
        if self._packed:
            return _packed_product(x_TI, self._weight, self.bias_O)
        return functional.linear(x_TI, self._weight, self.bias_O)

    def weight(self) -> Tensor:
        """The weights, (O, I); a copy when they are packed."""
        return self._weight.to_dense() if self._packed else self._weight

    def shares(self, weight_OI: Tensor) -> bool:
        """Whether these very weights are held here."""
        return not self._packed and self._weight.data_ptr() == weight_OI.data_ptr()

    @property
    def bytes(self) -> int:
        """Bytes held."""
        parameters = self.outputs * self.inputs + (0 if self.bias_O is None else self.outputs)
        return parameters * self._weight.dtype.itemsize


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
