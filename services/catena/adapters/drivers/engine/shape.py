"""The sizes of a decoder: what its weights, its keys and values, and its adapters agree on."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`key_heads` keep keys and values, `head` is a head's size, `context` the most tokens of prompt and answer.

    `turned` is how much of a head rotates with its position; `scale` multiplies the attention's scores, `embed_scale`
    the embeddings. `dtype` and `device` are those of the weights.
    """

    layers: int
    width: int
    heads: int
    key_heads: int
    head: int
    turned: int
    scale: float
    embed_scale: float
    feed_forward: int
    activation: str
    vocabulary: int
    epsilon: float
    context: int
    dtype: torch.dtype
    device: torch.device

    @property
    def outputs(self) -> tuple[int, ...]:
        """Output size of each of a layer's four sites: q with k and v, o, gate with up, down."""
        attention = (self.heads + 2 * self.key_heads) * self.head
        return attention, self.width, 2 * self.feed_forward, self.width

    @property
    def key_dtype(self) -> torch.dtype:
        """What keys are kept in: on a CPU the scores come out in it, and half precision would round them."""
        return torch.float32 if self.device.type == "cpu" else self.dtype

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that a token keeps over all layers."""
        return self.layers * self.key_heads * self.head * (self.key_dtype.itemsize + self.dtype.itemsize)
