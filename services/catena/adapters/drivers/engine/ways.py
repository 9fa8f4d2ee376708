"""In which of the engine's ways a base's steps are computed: as its device has it, or as asked.

All ways give the same answers and all run on a CPU, where they are held to PEFT; which is fast is the device's matter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from catena.adapters.drivers.engine.decoder import Decoder, Step
from catena.adapters.drivers.engine.frames import Ways
from catena.adapters.drivers.engine.graphs import Graphs, cuda_capture
from catena.adapters.drivers.engine.kv_bags import Bags
from catena.adapters.drivers.engine.kv_blocks import KvBlocks, Store
from catena.adapters.drivers.engine.kv_places import AttendSingles, Places
from catena.adapters.drivers.engine.lora import Adapter
from catena.adapters.drivers.engine.lora_mask import MaskStacks
from catena.adapters.drivers.engine.shape import Shape
from catena.adapters.drivers.engine.stacks import Stacks
from catena.kit.errors import Invalid

MOST_HEAD = 256
"""The largest head that flash attention takes; it has to be a multiple of 8."""


AUTO = Ways()
"""As the device has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Whereby one batch computes."""

    decoder: Decoder
    kv: KvBlocks
    stacks: Stacks | MaskStacks
    graphs: Graphs | None

    def forward(self, step: Step, rows: Sequence[Adapter | None]) -> Tensor:
        """Logits of the wanted rows, (W, V), valid until the next step; `rows` are the packed tokens' adapters."""
        if not isinstance(self.stacks, MaskStacks):
            return self.decoder.forward(step, self.kv, self.stacks.step(rows))
        lora = self.stacks.step(rows)
        logits_WV = self.graphs.forward(step, lora) if self.graphs is not None else None
        return self.decoder.forward(step, self.kv, lora) if logits_WV is None else logits_WV


def means(decoder: Decoder, ways: Ways, *, rows: int, kv_bytes: int, prefix_bytes: int) -> Means:
    """What a batch of up to `rows` computes with. Raises Invalid (`bad_config`) for ways that do not go together."""
    shape = decoder.shape
    cuda = shape.device.type == "cuda"
    places = cuda if ways.kv == "auto" else ways.kv == "places"
    masks = cuda if ways.lora == "auto" else ways.lora == "mask"
    there = find_spec("triton") is not None
    if ways.kernels == "on" and not there:
        raise Invalid("adapters.kernels needs triton, which is not installed", code="bad_config")
    kernels = there and (cuda if ways.kernels == "auto" else ways.kernels == "on")
    store = _places(shape, kernels) if places else Bags
    kv = KvBlocks(shape, kv_bytes, rows=rows, spare=prefix_bytes, store=store)
    stacks = _masks(shape, kernels) if masks else Stacks(shape)
    graphs = None
    if ways.graphs == "on" or (ways.graphs == "auto" and kernels and places and masks):
        if not places or not isinstance(stacks, MaskStacks):
            raise Invalid("adapters.graphs needs adapters.kv places and adapters.lora mask", code="bad_config")
        graphs = Graphs(decoder, kv, stacks, most_rows=rows, capture=cuda_capture() if cuda else lambda run: run)
    return Means(decoder=decoder, kv=kv, stacks=stacks, graphs=graphs)


def _places(shape: Shape, kernels: bool) -> Callable[[Shape, int], Store]:
    singles: AttendSingles | None = None
    if kernels:
        from catena.adapters.drivers.engine.kernels import attend_singles

        singles = attend_singles
    flash = shape.device.type == "cuda" and shape.dtype != torch.float32 and _flash_heads(shape.head)
    packed = varlen_attn if flash and torch.cuda.get_device_capability(shape.device) >= (8, 0) else None
    return partial(Places, singles=singles, packed=packed)


def _flash_heads(size: int) -> bool:
    return size <= MOST_HEAD and size % 8 == 0


def _masks(shape: Shape, kernels: bool) -> MaskStacks:
    if not kernels:
        return MaskStacks(shape)
    from catena.adapters.drivers.engine.kernels import add_masked

    return MaskStacks(shape, products=add_masked)
