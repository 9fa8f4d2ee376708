"""The proof, at the first load into a base, that an adapter is finite and changes what the base says."""

import torch
from torch import Tensor

from catena.adapters.drivers.engine.decoder import Decoder, Segment, Step
from catena.adapters.drivers.engine.kv_bags import Bags
from catena.adapters.drivers.engine.kv_blocks import KvBlocks
from catena.adapters.drivers.engine.lora import Adapter
from catena.adapters.drivers.engine.prefix import BLOCK, blocks_of
from catena.adapters.drivers.engine.stacks import Stacks
from catena.kit.errors import Invalid

PROBE_TOKENS = 12
LEAST_CHANGE = 1e-5
"""Relative to the largest logit; float32 rounding stays a tenfold below."""


def probe(decoder: Decoder, adapter: Adapter) -> None:
    """Raises Invalid: `adapter_not_finite` for NaN or infinity, `adapter_no_effect` when nothing changes."""
    with_it = whole_logits(decoder, _tokens(decoder), adapter)
    if not bool(torch.isfinite(with_it).all()):
        raise Invalid("the adapter makes the base answer NaN or infinity; train it again", code="adapter_not_finite")
    without = whole_logits(decoder, _tokens(decoder), None)
    change, size = float((with_it - without).abs().max()), float(without.abs().max())
    if change <= LEAST_CHANGE * size:
        raise Invalid(
            f"the adapter changes no logit by more than {change:.1e} of {size:.1e}; train it, or serve its own base",
            code="adapter_no_effect",
        )


def whole_logits(decoder: Decoder, tokens: list[int], adapter: Adapter | None) -> Tensor:
    """Logits after every token of one text, (T, V), outside any batch; safe beside a running one."""
    device = decoder.shape.device
    room = blocks_of(len(tokens)) * BLOCK * decoder.shape.kv_bytes_per_token
    kv = KvBlocks(decoder.shape, room, rows=1, store=Bags)
    kv.fit([len(tokens)])
    count = len(tokens)
    step = Step(
        tokens_T=torch.tensor(tokens, device=device),
        positions_T=torch.arange(count, device=device),
        slots_T=torch.zeros(count, dtype=torch.long, device=device),
        singles=0,
        span=0,
        segments=[Segment(0, count, 0, 0)],
        wanted_W=None,
    )
    return decoder.forward(step, kv, Stacks(decoder.shape).step([adapter] * count))


def _tokens(decoder: Decoder) -> list[int]:
    stride = max(decoder.shape.vocabulary // PROBE_TOKENS, 1)
    return list(range(0, decoder.shape.vocabulary, stride))[:PROBE_TOKENS]
