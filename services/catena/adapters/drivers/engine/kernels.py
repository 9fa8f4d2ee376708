"""Triton kernels for steps in which each row feeds one token: attention over blocks, and LoRA under a mask.

Checked in Triton's interpreter and compiled for sm_80, sm_90, sm_100 without a GPU; not yet run on one. Imported only
where triton is installed. What varies by step is read from tensors, so that a CUDA graph can hold the launches.

Legend: N rows, H query heads, K key heads, G = H / K, E head size, P places for a token, X the 2K heads of keys and
values, S splits, Z slots, B blocks of a row, T packed rows, I inputs, O outputs, C rank columns, W columns of a step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from catena.adapters.drivers.engine.lora_mask import Pair
from catena.adapters.drivers.engine.prefix import BLOCK

TILE = 64
"""Tokens of a row that are attended to at a time."""
PROGRAMS = 512
"""Programs that keep a large GPU busy: work is split until there are about as many. Estimated."""
MOST_SPLITS = 16
SPLIT_ROWS = 128
"""Rows times splits that the second LoRA product holds at a time: 75 KiB of shared memory in half precision."""
RANKS, MOST_RANKS, INPUT_BYTES, OUTPUTS = 16, 64, 256, 64
"""Tiles of the LoRA products: rank columns of the first, of the second at most, bytes of inputs, outputs."""
LEAST_ROWS, MOST_ROWS = 16, 64
"""Rows of a tile: what a matrix unit takes at least, what registers hold."""


def attend_singles(
    q_NHE: Tensor,
    kv_PXE: Tensor,
    tables_ZB: Tensor,
    slots_N: Tensor,
    positions_N: Tensor,
    window: int,
    scale: float,
) -> Tensor:
    """What each row's one token makes of the row up to it, (N, H E).

    Every key head's queries go together; a row's tokens are split over programs where there are few rows, and the parts
    put together by their largest scores and sums (arXiv 2205.14135, section 3.1).
    """
    rows, heads, size = q_NHE.shape
    key_heads = kv_PXE.shape[1] // 2
    group = heads // key_heads
    most = tables_ZB.shape[1] * BLOCK
    splits = _split(rows * key_heads, min(triton.cdiv(most, TILE), MOST_SPLITS))
    part_NHSE = torch.empty(rows, heads, splits, size, dtype=torch.float32, device=q_NHE.device)
    peak_NHS = torch.empty(2, rows, heads, splits, dtype=torch.float32, device=q_NHE.device)
    out_NO = torch.empty(rows, heads * size, dtype=q_NHE.dtype, device=q_NHE.device)
    sizes = {"GROUP": group, "SIZE": size, "SIZES": triton.next_power_of_2(size), "SPLITS": splits}
    _attend[(rows, key_heads, splits)](
        q_NHE,
        kv_PXE,
        tables_ZB,
        slots_N,
        positions_N,
        part_NHSE,
        peak_NHS[0],
        peak_NHS[1],
        q_NHE.stride(0),
        kv_PXE.stride(0),
        tables_ZB.stride(0),
        scale,
        WINDOW=window,
        GROUPS=max(triton.next_power_of_2(group), LEAST_ROWS),
        TILE=TILE,
        BLOCK=BLOCK,
        **sizes,
    )
    _merge[(rows, heads)](
        part_NHSE,
        peak_NHS[0],
        peak_NHS[1],
        out_NO,
        SIZE=size,
        SIZES=sizes["SIZES"],
        SPLITS=splits,
        MOST=triton.next_power_of_2(splits),
    )
    return out_NO


def add_masked(y_TO: Tensor, x_TI: Tensor, pair: Pair, begins_T: Tensor, ends_T: Tensor, width: int) -> None:
    """Add to `y_TO` what `x_TI` makes through the first `width` columns of `pair`, each row's window alone.

    The long sum over inputs is split over programs, whose parts the second product adds up as it reads them.
    """
    rows, inputs = x_TI.shape
    parts, columns, _ = pair.a_PCI.shape
    tile = min(max(triton.next_power_of_2(rows), LEAST_ROWS), MOST_ROWS)
    stripes = triton.cdiv(rows, tile)
    piece = INPUT_BYTES // x_TI.element_size()
    splits = _split(parts * (width // RANKS) * stripes, min(triton.cdiv(inputs, piece), SPLIT_ROWS // tile))
    h_SPTW = torch.empty(splits, parts, rows, width, dtype=torch.float32, device=x_TI.device)
    _shrink[(parts * (width // RANKS), splits, stripes)](
        x_TI,
        pair.a_PCI,
        h_SPTW,
        rows,
        x_TI.stride(0),
        columns,
        INPUTS=inputs,
        PARTS=parts,
        WIDTH=width,
        SPLITS=splits,
        ROWS=tile,
        RANKS=RANKS,
        TILE=piece,
    )
    longest = max(outs.stop - outs.start for outs in pair.outs)
    _expand[(parts, triton.cdiv(longest, OUTPUTS), stripes)](
        y_TO,
        pair.b_CO,
        h_SPTW,
        pair.starts,
        begins_T,
        ends_T,
        rows,
        y_TO.stride(0),
        pair.b_CO.stride(0),
        PARTS=parts,
        WIDTH=width,
        SPLITS=splits,
        ROWS=tile,
        RANKS=min(width, MOST_RANKS),
        TILE=OUTPUTS,
    )


def _split(programs: int, most: int) -> int:
    """Into how many parts work is split so that there are enough programs: a power of two, for each is compiled."""
    splits = 1
    while 2 * splits <= most and programs * splits < PROGRAMS:
        splits *= 2
    return splits


@triton.jit
def _attend(
    q_ptr,
    kv_ptr,
    tables_ptr,
    slots_ptr,
    positions_ptr,
    part_ptr,
    peak_ptr,
    sum_ptr,
    q_stride,
    kv_stride,
    table_stride,
    scale,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    SIZES: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row, one key head, one split of the row's tokens."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    table_ptr = tables_ptr + tl.load(slots_ptr + row) * table_stride
    stop = tl.load(positions_ptr + row).to(tl.int32) + 1
    start = tl.maximum(stop - WINDOW, 0) if WINDOW else 0
    share = tl.cdiv(tl.cdiv(stop - start, SPLITS), TILE) * TILE
    begin = start + split * share
    end = tl.minimum(begin + share, stop)
    group, place, inside = tl.arange(0, GROUPS), tl.arange(0, SIZES), tl.arange(0, TILE)
    real = (group[:, None] < GROUP) & (place[None, :] < SIZE)
    query = (head * GROUP + group)[:, None] * SIZE + place[None, :]
    q = tl.load(q_ptr + row.to(tl.int64) * q_stride + query, mask=real, other=0.0)
    total = tl.zeros([GROUPS, SIZES], dtype=tl.float32)
    peak = tl.full([GROUPS], -float("inf"), dtype=tl.float32)
    weight = tl.zeros([GROUPS], dtype=tl.float32)
    for at in range(begin, end, TILE):
        token = at + inside
        seen = token < end
        block = tl.load(table_ptr + token // BLOCK, mask=seen, other=0).to(tl.int64)
        address = (block * BLOCK + token % BLOCK)[:, None] * kv_stride + head * SIZE + place[None, :]
        loads = seen[:, None] & (place[None, :] < SIZE)
        keys = tl.load(kv_ptr + address, mask=loads, other=0.0)
        score = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, -float("inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        faded, share_of = tl.exp(peak - higher), tl.exp(score - higher[:, None])
        values = tl.load(kv_ptr + address + heads * SIZE, mask=loads, other=0.0)
        total = total * faded[:, None] + tl.dot(share_of.to(values.dtype), values, input_precision="ieee")
        weight = weight * faded + tl.sum(share_of, 1)
        peak = higher
    out = ((row * heads * GROUP + head * GROUP + group) * SPLITS + split).to(tl.int64)
    tl.store(part_ptr + out[:, None] * SIZE + place[None, :], total, mask=real)
    tl.store(peak_ptr + out, peak, mask=group < GROUP)
    tl.store(sum_ptr + out, weight, mask=group < GROUP)


@triton.jit
def _merge(
    part_ptr,
    peak_ptr,
    sum_ptr,
    out_ptr,
    SIZE: tl.constexpr,
    SIZES: tl.constexpr,
    SPLITS: tl.constexpr,
    MOST: tl.constexpr,
):
    """One row's head: its splits, the empty ones among them, made one."""
    head = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    split, place = tl.arange(0, MOST), tl.arange(0, SIZES)
    peak = tl.load(peak_ptr + head * SPLITS + split, mask=split < SPLITS, other=-float("inf"))
    # Every row sees at least itself, so one split at least has a peak.
    share = tl.exp(peak - tl.max(peak, 0))
    weight = tl.load(sum_ptr + head * SPLITS + split, mask=split < SPLITS, other=0.0)
    loads = (split[:, None] < SPLITS) & (place[None, :] < SIZE)
    part = tl.load(part_ptr + (head * SPLITS + split)[:, None] * SIZE + place[None, :], mask=loads, other=0.0)
    out = tl.sum(part * share[:, None], 0) / tl.sum(weight * share, 0)
    tl.store(out_ptr + head * SIZE + place, out.to(out_ptr.dtype.element_ty), mask=place < SIZE)


@triton.jit
def _shrink(
    x_ptr,
    a_ptr,
    h_ptr,
    rows,
    x_stride,
    columns,
    INPUTS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Some rank columns of one part, for some rows, over one split of the inputs."""
    part, rank = tl.program_id(0) // (WIDTH // RANKS), tl.program_id(0) % (WIDTH // RANKS)
    split = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    column, inside = rank * RANKS + tl.arange(0, RANKS), tl.arange(0, TILE)
    x_row = x_ptr + row.to(tl.int64)[:, None] * x_stride
    a_row = a_ptr + (part * columns + column).to(tl.int64)[:, None] * INPUTS
    h = tl.zeros([ROWS, RANKS], dtype=tl.float32)
    for at in range(split * TILE, INPUTS, SPLITS * TILE):
        place = at + inside
        real = (place < INPUTS)[None, :]
        x = tl.load(x_row + place[None, :], mask=(row < rows)[:, None] & real, other=0.0)
        a = tl.load(a_row + place[None, :], mask=real, other=0.0)
        h += tl.dot(x, tl.trans(a), input_precision="ieee")
    out = ((split * PARTS + part) * rows + row).to(tl.int64)[:, None] * WIDTH + column[None, :]
    tl.store(h_ptr + out, h, mask=(row < rows)[:, None])


@triton.jit
def _expand(
    y_ptr,
    b_ptr,
    h_ptr,
    starts_ptr,
    begins_ptr,
    ends_ptr,
    rows,
    y_stride,
    b_stride,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Some outputs of one part, for some rows, added to what is there."""
    part = tl.program_id(0)
    out = tl.load(starts_ptr + part) + tl.program_id(1) * TILE + tl.arange(0, TILE)
    stop = tl.load(starts_ptr + part + 1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    begin = tl.load(begins_ptr + row, mask=row < rows, other=0)
    end = tl.load(ends_ptr + row, mask=row < rows, other=0)
    total = tl.zeros([ROWS, TILE], dtype=tl.float32)
    for at in range(0, WIDTH, RANKS):
        column = at + tl.arange(0, RANKS)
        own = (column[None, :] >= begin[:, None]) & (column[None, :] < end[:, None])
        h = tl.zeros([ROWS, RANKS], dtype=tl.float32)
        for split in tl.static_range(SPLITS):
            address = ((split * PARTS + part) * rows + row).to(tl.int64)[:, None] * WIDTH + column[None, :]
            h += tl.load(h_ptr + address, mask=own, other=0.0)
        b_at = b_ptr + column.to(tl.int64)[:, None] * b_stride + out[None, :]
        b = tl.load(b_at, mask=(out < stop)[None, :], other=0.0)
        total += tl.dot(h.to(b.dtype), b, input_precision="ieee")
    y_at = y_ptr + row.to(tl.int64)[:, None] * y_stride + out[None, :]
    real = (row < rows)[:, None] & (out < stop)[None, :]
    y = tl.load(y_at, mask=real, other=0.0)
    tl.store(y_at, (y.to(tl.float32) + total).to(y.dtype), mask=real)
