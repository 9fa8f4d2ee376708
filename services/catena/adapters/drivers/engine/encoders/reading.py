"""Which kind of model a checked folder holds, read into memory."""

from pathlib import Path

import torch

from catena.adapters.core.work import BaseSource
from catena.adapters.drivers.engine.encoders.features import read_features
from catena.adapters.drivers.engine.encoders.passages import Encoder
from catena.adapters.drivers.engine.encoders.pooling import read_pooling
from catena.adapters.drivers.engine.encoders.transformer import Transformer, read_transformer


def read_encoder(base: BaseSource, *, dtype: torch.dtype, device: torch.device) -> Encoder:
    """The model in a folder that passed the gate. Raises Invalid (`unsupported_architecture`, `base_incomplete`)."""
    folder = Path(base.folder)
    if base.kind == "prediction":
        return read_features(folder)
    pooling = read_pooling(folder) if base.kind == "embedding" else None
    loaded = read_transformer(folder, base.kind, dtype=dtype, device=device)
    return Transformer(loaded, pooling=pooling, most_tokens=base.context_tokens)
