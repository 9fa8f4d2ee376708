"""Every way in which the engine may compute a step, on a CPU, where all of them can be held to the same."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from catena.adapters.drivers.engine.decoder import Decoder
from catena.adapters.drivers.engine.frames import Ways
from catena.adapters.drivers.engine.graphs import Graphs
from catena.adapters.drivers.engine.kv_blocks import KvBlocks
from catena.adapters.drivers.engine.kv_places import Places
from catena.adapters.drivers.engine.lora_mask import MaskStacks
from catena.adapters.drivers.engine.ways import Means, means

Make = Callable[[Decoder], Means]
ROWS, KV_BYTES = 16, 1 << 24


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor,
    keys: Tensor,
    most_queries: int,
    most_keys: int,
    **asked: Any,
) -> Tensor:
    """What flash attention over packed rows gives, row by row: it needs CUDA itself."""
    parts = []
    ends = zip(queries.tolist(), queries[1:].tolist(), keys.tolist(), keys[1:].tolist(), strict=False)
    for q_begin, q_end, k_begin, k_end in ends:
        count, span = q_end - q_begin, k_end - k_begin
        assert count <= most_queries and span <= most_keys
        left, right = asked["window_size"]
        mask = torch.ones(count, span, dtype=torch.bool).tril(span - count + right)
        mask = mask.triu(span - count - left) if left >= 0 else mask
        q, k, v = (part.transpose(0, 1) for part in (query[q_begin:q_end], key[k_begin:k_end], value[k_begin:k_end]))
        out = functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, scale=asked["scale"], enable_gqa=asked["enable_gqa"]
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def _asked(ways: Ways) -> Make:
    return lambda decoder: means(decoder, ways, rows=ROWS, kv_bytes=KV_BYTES, prefix_bytes=0)


def _packed(decoder: Decoder) -> Means:
    """As on CUDA, but for the kernels: prompts at once by packed attention and segmented products."""
    kv = KvBlocks(decoder.shape, KV_BYTES, rows=ROWS, store=partial(Places, packed=attend_packed))
    stacks = MaskStacks(decoder.shape, most_runs=100, long_run=2)
    graphs = Graphs(decoder, kv, stacks, most_rows=ROWS, capture=lambda run: run)
    return Means(decoder=decoder, kv=kv, stacks=stacks, graphs=graphs)


MEANS: dict[str, Make] = {
    "bags-rows": _asked(Ways()),
    "bags-mask": _asked(Ways(lora="mask")),
    "places-rows": _asked(Ways(kv="places")),
    "places-mask-graphs": _asked(Ways(kv="places", lora="mask", graphs="on")),
    "places-segments-packed": _packed,
}
