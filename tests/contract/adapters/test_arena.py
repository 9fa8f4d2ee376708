"""An adapter's memory: one stretch, of as many bytes as its tensors have, that keeps its cut wherever it moves."""

from pathlib import Path

import pytest
import torch

from catena.adapters.drivers.engine.adapter_weights import read_parts
from catena.adapters.drivers.engine.arena import HOST, moved
from catena.adapters.drivers.engine.base_weights import read_base
from catena.adapters.drivers.engine.decoder import Decoder
from catena.adapters.drivers.engine.lora import Adapter
from tests.contract.adapters.making import make_adapter, make_base, part_of


def opened(base: Path, dtype: str = "float32", device: torch.device = HOST) -> Decoder:
    return read_base(base, dtype=dtype, device=device, kv_bytes=1 << 20)


def tensors(adapter: Adapter) -> list[torch.Tensor]:
    found = []
    for _, site in sorted(adapter.sites.items()):
        found += [factor for block in site.blocks for factor in (block.a_RI, block.b_OR)]
        found += [site.norm_O, site.shift_O]
    return [tensor for tensor in found if tensor is not None]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_one_stretch_of_exactly_its_tensors_bytes(tmp_path: Path, dtype: str, dora: bool) -> None:
    base = make_base(tmp_path / "base", kind="biased")
    part = part_of(base, make_adapter(base, tmp_path / "adapter", r=3, use_dora=dora))

    adapter = read_parts("a", [part], opened(base, dtype))

    held = tensors(adapter)
    assert {tensor.untyped_storage().data_ptr() for tensor in held} == {held[0].untyped_storage().data_ptr()}
    # What a file has is kept as it is; DoRA's magnitudes are part of it.
    magnitudes = sum(module.outputs for module in part.modules if dora) * held[0].element_size()
    size = sum(tensor.nbytes for tensor in held) + magnitudes
    assert adapter.bytes == held[0].untyped_storage().nbytes() == size
    assert all(bool(tensor.isfinite().all()) for tensor in held)


def test_it_is_cut_the_same_way_wherever_it_moves(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = read_parts("a", [part_of(base, make_adapter(base, tmp_path / "adapter"))], opened(base))

    there = moved(adapter, torch.device("meta"))

    def cut(of: Adapter) -> list[tuple[object, ...]]:
        return [(tensor.shape, tensor.stride(), tensor.storage_offset()) for tensor in tensors(of)]

    assert {tensor.device.type for tensor in tensors(there)} == {"meta"}
    assert cut(there) == cut(adapter)
    assert there.bytes == adapter.bytes
    assert moved(adapter, HOST) is adapter
