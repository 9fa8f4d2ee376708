"""What a worker leaves behind for the next attempt: one file, whole or the one before.

Holds the adapter, the optimiser's state, the generators' states and the step; the step is the data position, since
the schedule is a pure function.
"""

import os
from pathlib import Path
from typing import Any

import torch

from catena.artifacts.placing import sync_folder
from catena.trainer.drivers.worker.model import trained_tensors

NAME = "checkpoint.pt"


def save(folder: Path, model: Any, optimiser: torch.optim.Optimizer, step: int, losses: list[float]) -> None:
    """Keep the state after `step` optimiser steps."""
    state = {
        "step": step,
        "adapter": {name: tensor.detach() for name, tensor in trained_tensors(model).items()},
        "optimiser": optimiser.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "losses": losses,
    }
    made = folder / f"{NAME}.new"
    with made.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(made, folder / NAME)
    sync_folder(folder)


def restore(folder: Path, model: Any, optimiser: torch.optim.Optimizer) -> tuple[int, list[float]]:
    """Put the kept state back; the step to go on from and the losses so far. Step 0 when nothing was kept."""
    path = folder / NAME
    if not path.exists():
        return 0, []
    state = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, tensor in trained_tensors(model).items():
            tensor.copy_(state["adapter"][name])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["rng"])
    if torch.cuda.is_available() and state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return int(state["step"]), list(state["losses"])
