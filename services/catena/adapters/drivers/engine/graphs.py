"""Steps in which every row feeds one token, as CUDA graphs: one launch instead of several hundred.

A graph is bound to its shapes and addresses, so a step's rows are padded to one of a few numbers, and all that varies
by step lies in one tensor: tokens, positions, slots and each row's columns of the LoRA factors. Rows that pad belong to
the base and to no row's blocks. Whatever does not fit goes through the plain forward.

Legend: N rows with padding, F their five figures, W rows whose logits are wanted, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from catena.adapters.drivers.engine.decoder import Decoder, Step
from catena.adapters.drivers.engine.kv_blocks import KvBlocks
from catena.adapters.drivers.engine.lora_mask import MaskStacks, MaskStep

Run = Callable[[], Tensor]
Capture = Callable[[Run], Run]
"""Makes of a computation on fixed tensors one that can be repeated, without doing it."""
EVEN = 8
"""Beyond this many rows, numbers of rows are rounded up to multiples of it; below, to powers of two."""


class Graphs:
    """Forward passes of one batch, each captured when its shape is first met."""

    def __init__(self, decoder: Decoder, kv: KvBlocks, stacks: MaskStacks, *, most_rows: int, capture: Capture) -> None:
        """Serve steps of up to `most_rows`."""
        self.replayed = 0
        self._decoder, self._kv, self._stacks = decoder, kv, stacks
        self._most_rows = most_rows
        self._capture = capture
        self._epoch = 0
        self._shapes: dict[tuple[int, int], _Held] = {}

    def forward(self, step: Step, lora: MaskStep | None) -> Tensor | None:
        """Logits of the wanted rows, (W, V), valid until the next step; None: this step is no case for graphs."""
        if step.segments or step.singles > self._most_rows:
            return None
        if self._epoch != self._stacks.epoch:
            self._shapes = {shape: held for shape, held in self._shapes.items() if not shape[1]}
            self._epoch = self._stacks.epoch
        shape = padded(step.singles), lora.width if lora is not None else 0
        held = self._shapes.get(shape)
        if held is None:
            held = self._shapes[shape] = self._new(*shape)
        held.fill(step, lora)
        if held.replay is None:
            # The kernels of this shape may have to be compiled, which cannot be captured.
            logits_NV = held.run()
            held.replay = self._capture(held.run)
        else:
            self.replayed += 1
            logits_NV = held.replay()
        return logits_NV[: step.singles] if step.wanted_W is None else logits_NV.index_select(0, step.wanted_W)

    def _new(self, rows: int, width: int) -> "_Held":
        """A shape's tensor and the forward pass that reads it."""
        device = self._decoder.shape.device
        none_F1 = torch.tensor([[0], [0], [self._kv.padding], [0], [0]], device=device)
        figures_FN = none_F1.repeat(1, rows)
        span = self._decoder.shape.context

        def run() -> Tensor:
            step = Step(
                tokens_T=figures_FN[0],
                positions_T=figures_FN[1],
                slots_T=figures_FN[2],
                singles=rows,
                span=span,
                segments=(),
                wanted_W=None,
            )
            lora = MaskStep(self._stacks, figures_FN[3:], width, rows, ()) if width else None
            return self._decoder.forward(step, self._kv, lora)

        return _Held(none_F1, figures_FN, run)


@dataclass(slots=True)
class _Held:
    """One shape: what a row of no request has, the figures that a replay reads, and how they are computed with."""

    none_F1: Tensor
    figures_FN: Tensor
    run: Run
    replay: Run | None = None

    def fill(self, step: Step, lora: MaskStep | None) -> None:
        """Write down a step, and that the other rows are nobody's."""
        figures_FN, count = self.figures_FN, step.singles
        figures_FN.copy_(self.none_F1.expand_as(figures_FN))
        for figures_N, given_T in zip(figures_FN, (step.tokens_T, step.positions_T, step.slots_T), strict=False):
            figures_N[:count].copy_(given_T)
        if lora is not None:
            figures_FN[3:, :count].copy_(lora.windows_2T)


def padded(rows: int) -> int:
    """Rows of the graph that serves this many."""
    return 1 << (rows - 1).bit_length() if rows <= EVEN else -(-rows // EVEN) * EVEN


def cuda_capture() -> Capture:
    """Captures on the current CUDA device; all graphs share their memory, for they run one at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        # Other threads load adapters meanwhile, which must not break the capture.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            logits_NV = run()

        def replay() -> Tensor:
            graph.replay()
            return logits_NV

        return replay

    return capture
