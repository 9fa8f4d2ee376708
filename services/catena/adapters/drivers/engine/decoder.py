"""The forward pass of Llama-like decoders over a packed step: rows of many requests, one token or many each.

Legend of shapes: T packed tokens, D width, H query heads, K key heads, G = H / K, E head size, F feed-forward,
V vocabulary, L tokens of a key-value row, W rows whose logits are wanted, N rows that feed one token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from catena.adapters.drivers.engine.kv import KvSlab
from catena.adapters.drivers.engine.lora import LoraStep
from catena.adapters.drivers.engine.shape import Shape


@dataclass(slots=True, kw_only=True)
class Layer:
    """One block's weights; q, k and v are stacked, and so are gate and up."""

    norm_in_D: Tensor
    qkv_OD: Tensor
    qkv_bias_O: Tensor | None
    q_norm_E: Tensor | None
    k_norm_E: Tensor | None
    o_DO: Tensor
    o_bias_D: Tensor | None
    norm_mlp_D: Tensor
    gate_up_FD: Tensor
    gate_up_bias_F: Tensor | None
    down_DF: Tensor
    down_bias_D: Tensor | None


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

    `single_slots_N` is None when the singles' slots are 0, 1, 2 and so on. `mask_N11L` is True where a single may look.
    """

    tokens_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    singles: int
    single_slots_N: Tensor | None
    mask_N11L: Tensor | None
    span: int
    segments: Sequence[Segment]
    wanted_W: Tensor | None


class Decoder:
    """A base's weights and its forward pass; holds no state of any request."""

    def __init__(self, shape: Shape, layers: Sequence[Layer], ends: "Ends") -> None:
        """Take weights that `bases` has read."""
        self.shape = shape
        self.layers = layers
        self.ends = ends
        self._scale = shape.head**-0.5

    @torch.inference_mode()
    def forward(self, step: Step, kv: KvSlab, lora: LoraStep | None) -> Tensor:
        """Logits of the wanted rows in fp32, (W, V), after writing the step's keys and values into `kv`."""
        shape, ends = self.shape, self.ends
        x_TD = functional.embedding(step.tokens_T, ends.embed_VD)
        cos_T1E = ends.cos_PE[step.positions_T].unsqueeze(1)
        sin_T1E = ends.sin_PE[step.positions_T].unsqueeze(1)
        width = (shape.width,)
        for index, layer in enumerate(self.layers):
            h_TD = functional.rms_norm(x_TD, width, layer.norm_in_D, shape.epsilon)
            qkv_TO = functional.linear(h_TD, layer.qkv_OD, layer.qkv_bias_O)
            if lora is not None:
                lora.add(qkv_TO, h_TD, index, 0)
            heads_TO = self._attend(index, layer, qkv_TO, (cos_T1E, sin_T1E), step, kv)
            y_TD = functional.linear(heads_TO, layer.o_DO, layer.o_bias_D)
            if lora is not None:
                lora.add(y_TD, heads_TO, index, 1)
            x_TD = x_TD + y_TD
            h_TD = functional.rms_norm(x_TD, width, layer.norm_mlp_D, shape.epsilon)
            both_TF = functional.linear(h_TD, layer.gate_up_FD, layer.gate_up_bias_F)
            if lora is not None:
                lora.add(both_TF, h_TD, index, 2)
            m_TF = functional.silu(both_TF[:, : shape.feed_forward]).mul_(both_TF[:, shape.feed_forward :])
            y_TD = functional.linear(m_TF, layer.down_DF, layer.down_bias_D)
            if lora is not None:
                lora.add(y_TD, m_TF, index, 3)
            x_TD = x_TD + y_TD
        if step.wanted_W is not None:
            x_TD = x_TD.index_select(0, step.wanted_W)
        x_TD = functional.rms_norm(x_TD, width, ends.norm_D, shape.epsilon)
        return functional.linear(x_TD, ends.head_VD).float()

    def _attend(
        self, index: int, layer: Layer, qkv_TO: Tensor, turn: tuple[Tensor, Tensor], step: Step, kv: KvSlab
    ) -> Tensor:
        shape = self.shape
        all_TXE = qkv_TO.view(qkv_TO.shape[0], shape.heads + 2 * shape.key_heads, shape.head)
        turned = shape.heads + shape.key_heads
        qk_TXE = all_TXE[:, :turned]
        if layer.q_norm_E is not None and layer.k_norm_E is not None:
            size = (shape.head,)
            q_THE = functional.rms_norm(qk_TXE[:, : shape.heads], size, layer.q_norm_E, shape.epsilon)
            k_TKE = functional.rms_norm(qk_TXE[:, shape.heads :], size, layer.k_norm_E, shape.epsilon)
            qk_TXE = torch.cat((q_THE, k_TKE), dim=1)
        # Rotation of halves: the sine's first half is stored negated, so a roll does for the swap.
        qk_TXE = (qk_TXE * turn[0]).addcmul_(qk_TXE.roll(shape.head // 2, -1), turn[1])
        kv_TXE = torch.cat((qk_TXE[:, shape.heads :], all_TXE[:, turned:]), dim=1)
        kv.write(index, step.slots_T, step.positions_T, kv_TXE)
        q_THE = qk_TXE[:, : shape.heads]
        parts = []
        if step.singles:
            parts.append(self._attend_singles(index, q_THE[: step.singles], step, kv))
        parts += [self._attend_segment(index, q_THE, segment, kv) for segment in step.segments]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_singles(self, index: int, q_NHE: Tensor, step: Step, kv: KvSlab) -> Tensor:
        shape, n = self.shape, step.singles
        keys_NKLE, values_NKLE = kv.read(index, n, step.single_slots_N, step.span)
        q_NKGE = q_NHE.reshape(n, shape.key_heads, shape.heads // shape.key_heads, shape.head)
        out_NKGE = functional.scaled_dot_product_attention(
            q_NKGE, keys_NKLE, values_NKLE, attn_mask=step.mask_N11L, scale=self._scale
        )
        return out_NKGE.reshape(n, shape.heads * shape.head)

    def _attend_segment(self, index: int, q_THE: Tensor, segment: Segment, kv: KvSlab) -> Tensor:
        shape, count = self.shape, segment.end - segment.begin
        stop = segment.start + count
        keys_1KLE, values_1KLE = kv.row(index, segment.slot, stop)
        q_1HTE = q_THE[segment.begin : segment.end].transpose(0, 1).unsqueeze(0)
        mask_TL = None
        if segment.start:
            mask_TL = torch.ones(count, stop, dtype=torch.bool, device=q_THE.device).tril(segment.start)
        out_1HTE = functional.scaled_dot_product_attention(
            q_1HTE,
            keys_1KLE,
            values_1KLE,
            attn_mask=mask_TL,
            is_causal=mask_TL is None,
            scale=self._scale,
            enable_gqa=shape.heads != shape.key_heads,
        )
        return out_1HTE[0].transpose(0, 1).reshape(count, shape.heads * shape.head)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What comes before and after the layers. `cos_PE`, `sin_PE` are by position; the sine's first half is negated."""

    embed_VD: Tensor
    norm_D: Tensor
    head_VD: Tensor
    cos_PE: Tensor
    sin_PE: Tensor
