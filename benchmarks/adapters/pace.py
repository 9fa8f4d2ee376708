"""What this machine's products come to at best: the limit that figures of whole requests stand beside."""

from time import perf_counter

import torch

from benchmarks.adapters.subject import Compute
from catena.adapters.drivers.engine.linear import Linear

ROWS, INPUTS, OUTPUTS, TIMES = 256, 1024, 3328, 20


def products_gflops(compute: Compute) -> float:
    """Billions of multiplications and additions a second in products of packed weights, the best of several."""
    weight_OI = torch.randn(OUTPUTS, INPUTS).to(compute.torch_dtype)
    linear, x_TI = Linear(weight_OI), torch.randn(ROWS, INPUTS).to(compute.torch_dtype)
    took = []
    with torch.inference_mode():
        for _ in range(TIMES):
            began = perf_counter()
            linear(x_TI)
            took.append(perf_counter() - began)
    return 2 * ROWS * INPUTS * OUTPUTS / min(took) / 1e9
