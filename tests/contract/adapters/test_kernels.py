"""Triton's kernels beside the plain products that they stand for.

On CUDA, or on a CPU that has triton: `TRITON_INTERPRET=1 pytest tests/contract/adapters/test_kernels.py`.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.adapters.cuda import EXACT, check
from benchmarks.adapters.cuda_subject import make
from catena.adapters.drivers.engine.frames import Ways
from catena.adapters.drivers.engine.lora_mask import Pair
from catena.adapters.drivers.engine.prefix import BLOCK

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = find_spec("triton") is not None and (DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not RUNS, reason="needs triton, and CUDA or TRITON_INTERPRET=1"),
]
if RUNS:
    from catena.adapters.drivers.engine.kernels import add_masked, attend_singles


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with torch.device(DEVICE):
        yield


def attended(q_HE: Tensor, kv_LXE: Tensor, scale: float) -> Tensor:
    keys, values = (half.transpose(0, 1).unsqueeze(0) for half in kv_LXE.split(kv_LXE.shape[1] // 2, dim=1))
    out = functional.scaled_dot_product_attention(q_HE[None, :, None], keys, values, scale=scale, enable_gqa=True)
    return out.flatten()


@pytest.mark.parametrize("window", [0, 1, 40])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 4, 16), (6, 2, 24), (8, 1, 32)])
def test_attention_over_blocks_is_that_over_the_rows(heads: int, key_heads: int, size: int, window: int) -> None:
    torch.manual_seed(0)
    lengths = [1, 16, 17, 63, 64, 65, 200]
    width = 16
    kv_PXE = torch.randn((len(lengths) * width + 1) * BLOCK, 2 * key_heads, size)
    tables = (1 + torch.randperm(len(lengths) * width)).view(-1, width).int()
    slots = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    q = torch.randn(len(lengths), heads + 2, size)[:, :heads]
    positions = torch.tensor(lengths) - 1

    got = attend_singles(q, kv_PXE, tables, slots, positions, window, 0.3)

    for row, length in enumerate(lengths):
        seen = kv_PXE.unflatten(0, (-1, BLOCK))[tables[slots[row]].long()].flatten(0, 1)[:length]
        wanted = attended(q[row], seen[-window:] if window else seen, 0.3)
        assert torch.allclose(got[row], wanted, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 70])
@pytest.mark.parametrize("width", [16, 64, 128])
def test_masked_products_are_each_rows_own(rows: int, width: int) -> None:
    torch.manual_seed(0)
    outs = [slice(0, 70), slice(70, 90), slice(90, 110)]
    starts = torch.tensor([0, 70, 90, 110], dtype=torch.int32)
    pair = Pair(a_PCI=torch.randn(3, 128, 200), b_CO=torch.randn(128, 110), outs=outs, starts=starts)
    x, y = torch.randn(rows, 200), torch.randn(rows, 110)
    begins = torch.randint(0, width // 8, (rows,)) * 8
    ends = begins + torch.randint(0, 2, (rows,)) * 8
    wanted = y.clone()
    for row in range(rows):
        window = slice(int(begins[row]), int(ends[row]))
        for part, out in enumerate(outs):
            wanted[row, out] += (x[row] @ pair.a_PCI[part, window].T) @ pair.b_CO[window, out]

    add_masked(y, x, pair, begins, ends, width)

    assert torch.allclose(y, wanted, rtol=1e-4, atol=1e-3)


def test_the_engine_with_them_says_what_peft_says() -> None:
    device = torch.device(DEVICE)
    subject = make("tiny", 7, dtype=torch.float32, device=device, kv_bytes=1 << 20)

    assert check(subject, Ways(kv="places", lora="mask", graphs="on", kernels="on"), EXACT)
