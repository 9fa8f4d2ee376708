"""The forward pass of Llama-like decoders over a packed step: rows of many requests, one token or many each.

Legend of shapes: T packed tokens, D width, H query heads, K key heads, G = H / K, E head size, R the part of a head
that rotates, F feed-forward, V vocabulary, L tokens of a key-value row, W rows whose logits are wanted, N rows that
feed one token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from catena.adapters.drivers.engine.linear import Linear
from catena.adapters.drivers.engine.shape import Shape

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
}


@dataclass(slots=True, kw_only=True)
class Layer:
    """One block's weights; q, k and v are stacked, and so are gate and up.

    `norm_attended_D` and `norm_fed_D` come before the additions, where an architecture has them. `window` is how far
    back its attention sees, 0: to the start. `turn` says which of the rotations is its own.
    """

    norm_in_D: Tensor
    qkv: Linear
    q_norm_E: Tensor | None
    k_norm_E: Tensor | None
    o: Linear
    norm_attended_D: Tensor | None
    norm_mlp_D: Tensor
    gate_up: Linear
    down: Linear
    norm_fed_D: Tensor | None
    window: int = 0
    turn: int = 0

    @property
    def sites(self) -> tuple[Linear, Linear, Linear, Linear]:
        """The products that adapters may change."""
        return self.qkv, self.o, self.gate_up, self.down


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What comes before and after the layers.

    `turns` holds pairs of cosines and sines by position, (P, R); the first half of each sine is stored negated.
    """

    embed_VD: Tensor
    norm_D: Tensor
    head: Linear
    turns: Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Segment:
    """A row that feeds several tokens: packed from `begin` to `end`, into slot `slot` from position `start` on."""

    begin: int
    end: int
    slot: int
    start: int


@dataclass(slots=True, kw_only=True)
class Step:
    """One forward pass. The first `singles` packed tokens are one per row; `segments` hold the others.

    `span` is how many tokens the longest of these sees.
    """

    tokens_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    singles: int
    span: int
    segments: Sequence[Segment]
    wanted_W: Tensor | None
    _masks: dict[tuple[int, int], Tensor | None] = field(default_factory=dict)
    _single_masks: dict[int, Tensor] = field(default_factory=dict)

    def single_mask(self, window: int) -> Tensor:
        """True where a single may look, (N, 1, 1, L)."""
        if window not in self._single_masks:
            places_L = torch.arange(self.span, device=self.tokens_T.device)
            positions_N1 = self.positions_T[: self.singles, None]
            mask_NL = places_L <= positions_N1
            if window:
                mask_NL &= places_L > positions_N1 - window
            self._single_masks[window] = mask_NL[:, None, None]
        return self._single_masks[window]

    def segment_mask(self, number: int, window: int) -> Tensor | None:
        """True where a segment's tokens may look, (T, L); None: each at all before it and itself, from the start."""
        if (number, window) not in self._masks:
            segment = self.segments[number]
            count, stop = segment.end - segment.begin, segment.start + segment.end - segment.begin
            mask_TL = None
            if segment.start or 0 < window < stop:
                mask_TL = torch.ones(count, stop, dtype=torch.bool, device=self.tokens_T.device).tril(segment.start)
                mask_TL = mask_TL.triu(segment.start - window + 1) if window else mask_TL
            self._masks[number, window] = mask_TL
        return self._masks[number, window]


class Lora(Protocol):
    """What the rows' adapters add in one step."""

    def add(self, y_TO: Tensor, x_TI: Tensor, layer: int, site: int) -> None:
        """Add to `y_TO`, in place, what each row's adapter makes of `x_TI`."""


class Kv(Protocol):
    """Keys and values of the rows so far."""

    def attend(self, layer: int, window: int, q_THE: Tensor, kv_TXE: Tensor, step: Step) -> Tensor:
        """Keep the step's keys and values, heads one after the other; what each token makes of its row, (T, H E)."""


class Decoder:
    """A base's weights and its forward pass; holds no state of any request."""

    def __init__(self, shape: Shape, layers: Sequence[Layer], ends: Ends) -> None:
        """Take weights that `base_weights` has read."""
        self.shape = shape
        self.layers = layers
        self.ends = ends
        self._activate = ACTIVATIONS[shape.activation]

    @torch.inference_mode()
    def forward(self, step: Step, kv: Kv, lora: Lora | None) -> Tensor:
        """Logits of the wanted rows in fp32, (W, V), after writing the step's keys and values into `kv`."""
        shape, ends = self.shape, self.ends
        x_TD = functional.embedding(step.tokens_T, ends.embed_VD)
        if shape.embed_scale != 1.0:
            x_TD = x_TD * torch.tensor(shape.embed_scale, dtype=shape.dtype)
        turns = [(cos_PR[step.positions_T, None], sin_PR[step.positions_T, None]) for cos_PR, sin_PR in ends.turns]
        for index, layer in enumerate(self.layers):
            h_TD = self._norm(x_TD, layer.norm_in_D)
            qkv_TO = _through(layer.qkv, h_TD, lora, index, 0)
            heads_TO = self._attend(index, layer, qkv_TO, turns[layer.turn], step, kv)
            y_TD = _through(layer.o, heads_TO, lora, index, 1)
            if layer.norm_attended_D is not None:
                y_TD = self._norm(y_TD, layer.norm_attended_D)
            x_TD = x_TD + y_TD
            h_TD = self._norm(x_TD, layer.norm_mlp_D)
            both_TF = _through(layer.gate_up, h_TD, lora, index, 2)
            m_TF = self._activate(both_TF[:, : shape.feed_forward]).mul_(both_TF[:, shape.feed_forward :])
            y_TD = _through(layer.down, m_TF, lora, index, 3)
            if layer.norm_fed_D is not None:
                y_TD = self._norm(y_TD, layer.norm_fed_D)
            x_TD = x_TD + y_TD
        if step.wanted_W is not None:
            x_TD = x_TD.index_select(0, step.wanted_W)
        return ends.head(self._norm(x_TD, ends.norm_D)).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self.shape.epsilon)

    def _attend(
        self, index: int, layer: Layer, qkv_TO: Tensor, turn: tuple[Tensor, Tensor], step: Step, kv: Kv
    ) -> Tensor:
        shape = self.shape
        all_TXE = qkv_TO.view(qkv_TO.shape[0], shape.heads + 2 * shape.key_heads, shape.head)
        turned = shape.heads + shape.key_heads
        qk_TXE = all_TXE[:, :turned]
        if layer.q_norm_E is not None and layer.k_norm_E is not None:
            q_THE = self._norm(qk_TXE[:, : shape.heads], layer.q_norm_E)
            k_TKE = self._norm(qk_TXE[:, shape.heads :], layer.k_norm_E)
            qk_TXE = torch.cat((q_THE, k_TKE), dim=1)
        qk_TXE = _turned(qk_TXE, shape.turned, turn)
        kv_TXE = torch.cat((qk_TXE[:, shape.heads :], all_TXE[:, turned:]), dim=1)
        return kv.attend(index, layer.window, qk_TXE[:, : shape.heads], kv_TXE, step)


def attend_row(q_THE: Tensor, keys_1KLE: Tensor, values_1KLE: Tensor, mask_TL: Tensor | None, scale: float) -> Tensor:
    """What the last tokens of one row make of it, (T, H E). Without a mask they are all of it."""
    out_1HTE = functional.scaled_dot_product_attention(
        q_THE.transpose(0, 1).unsqueeze(0),
        keys_1KLE,
        values_1KLE,
        attn_mask=mask_TL,
        is_causal=mask_TL is None,
        scale=scale,
        enable_gqa=q_THE.shape[1] != keys_1KLE.shape[1],
    )
    return out_1HTE[0].transpose(0, 1).reshape(q_THE.shape[0], -1)


def _through(linear: Linear, x_TI: Tensor, lora: Lora | None, layer: int, site: int) -> Tensor:
    """A product with what the rows' adapters add to it."""
    y_TO = linear(x_TI)
    if lora is not None:
        lora.add(y_TO, x_TI, layer, site)
    return y_TO


def _turned(qk_TXE: Tensor, part: int, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Queries and keys rotated by halves; the sine's first half is negated, so a roll does for the swap."""
    if part < qk_TXE.shape[-1]:
        return torch.cat((_turned(qk_TXE[..., :part], part, turn), qk_TXE[..., part:]), dim=-1)
    return (qk_TXE * turn[0]).addcmul_(qk_TXE.roll(part // 2, -1), turn[1])
