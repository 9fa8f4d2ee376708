"""One stretch of memory an adapter, so that it moves between device and host in one copy and its bytes are exact."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from catena.adapters.drivers.engine.lora import Adapter, Site

HOST = torch.device("cpu")


class Arena:
    """Host memory that is cut into tensors in turn. `locked`: the device can copy from it by itself (CUDA)."""

    def __init__(self, size: int, dtype: torch.dtype, *, locked: bool) -> None:
        """Take memory for `size` numbers."""
        self.flat_N = torch.empty(size, dtype=dtype, pin_memory=locked)
        self._used = 0

    def take(self, *extent: int) -> Tensor:
        """The next tensor, its values not yet set."""
        begin, self._used = self._used, self._used + torch.Size(extent).numel()
        return self.flat_N[begin : self._used].view(extent)

    @property
    def full(self) -> bool:
        """Whether all of it is some tensor's."""
        return self._used == self.flat_N.numel()


def moved(adapter: Adapter, device: torch.device) -> Adapter:
    """The adapter in the memory of `device`, by one copy; itself where it is there already.

    Returns when the copy is done. It waits for no step that comes later, and none waits for it.
    """
    if next(_tensors(adapter)).device.type == device.type:
        return adapter
    copy_N = _copied(_arena_of(adapter), device)

    def there(tensor: Tensor) -> Tensor:
        return copy_N.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    return replace(adapter, sites={where: _mapped(site, there) for where, site in adapter.sites.items()})


def _copied(flat_N: Tensor, device: torch.device) -> Tensor:
    if "cuda" not in (device.type, flat_N.device.type):
        return flat_N.to(device)
    cuda = device if device.type == "cuda" else flat_N.device
    steps, beside = torch.cuda.current_stream(cuda), torch.cuda.Stream(cuda)  # type: ignore[no-untyped-call]
    beside.wait_stream(steps)
    with torch.cuda.stream(beside):
        copy_N = torch.empty(flat_N.shape, dtype=flat_N.dtype, device=device, pin_memory=device.type == "cpu")
        copy_N.copy_(flat_N, non_blocking=True)
    beside.synchronize()
    if copy_N.is_cuda:
        # Made on one stream and read on another: it may be used anew only when both are done with it.
        copy_N.record_stream(steps)
    return copy_N


def _arena_of(adapter: Adapter) -> Tensor:
    first = next(_tensors(adapter))
    storage = first.untyped_storage()
    assert all(tensor.untyped_storage().data_ptr() == storage.data_ptr() for tensor in _tensors(adapter))
    return first.new_empty(0).set_(storage, 0, (storage.nbytes() // first.element_size(),), (1,))


def _tensors(adapter: Adapter) -> Iterator[Tensor]:
    for site in adapter.sites.values():
        yield from (factor for block in site.blocks for factor in (block.a_RI, block.b_OR))
        yield from (vector for vector in (site.norm_O, site.shift_O) if vector is not None)


def _mapped(site: Site, there: Callable[[Tensor], Tensor]) -> Site:
    return replace(
        site,
        blocks=tuple(replace(block, a_RI=there(block.a_RI), b_OR=there(block.b_OR)) for block in site.blocks),
        norm_O=None if site.norm_O is None else there(site.norm_O),
        shift_O=None if site.shift_O is None else there(site.shift_O),
    )
