"""An adapter merged into its base: weights that any runtime can serve without knowing of adapters.

W + scale B A, and with DoRA each row brought to its magnitude (arXiv 2402.09353, equation 5). Computed in float64 and
rounded once to the base's own type: what a bfloat16 base loses is less than what a step of training changes.
"""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from catena.artifacts.base import CONFIG, DOCUMENT, INDEX, READ
from catena.artifacts.files import MANIFEST, SIGNATURE, list_files
from catena.artifacts.formats.arrays import Floats, Planned, Step, silent, write_safetensors
from catena.artifacts.formats.derived import Derived, seal
from catena.artifacts.formats.factors import Factors, LoraWeights, must_act_always
from catena.artifacts.formats.models import BaseModel, Config
from catena.artifacts.tensors import TensorInfo

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A base with an adapter's layers merged as they are asked for; has what `Weights` needs."""

    base: BaseModel
    adapter: LoraWeights

    def __post_init__(self) -> None:
        """Raises Invalid (`unsupported_adapter`) for an adapter that does not always act."""
        must_act_always(self.adapter, "a merged base")

    @property
    def config(self) -> Config:
        """The base's."""
        return self.base.config

    @property
    def folder(self) -> Path:
        """The base's, where the tokenizer is."""
        return self.base.folder

    def names(self) -> list[str]:
        """The base's tensors."""
        return self.base.names()

    def info(self, name: str) -> TensorInfo:
        """As in the base."""
        return self.base.info(name)

    def values(self, name: str) -> Floats:
        """The base's values, changed where the adapter changes them."""
        values = self.base.values(name)
        factors = self.adapter.modules.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return values if factors is None else merged(values, factors)


def merged(weight_OI: Floats, factors: Factors) -> Floats:
    """One layer's weight with the adapter in it, (outputs, inputs)."""
    whole = weight_OI + factors.scale * (factors.B_OR.astype(np.float64) @ factors.A_RI)
    if factors.magnitude_O is not None:
        whole *= (factors.magnitude_O / np.linalg.norm(whole, axis=1))[:, None]
    return whole.astype(np.float32)


def write_merged(weights: Merged, folder: Path, card: Derived, *, step: Step = silent) -> Derived:
    """Fill an empty folder with the merged base, its tokenizer and the sealed manifest that names where it is from."""
    for name, file in list_files(weights.folder, "base").items():
        wanted = (name in READ or DOCUMENT.match(name)) and name not in (MANIFEST, SIGNATURE, INDEX)
        if wanted or name == CONFIG:
            shutil.copyfile(file.path, folder / name)
    plan = [
        Planned(name=name, shape=info.shape, dtype=info.dtype, make=partial(weights.values, name))
        for name, info in ((name, weights.info(name)) for name in weights.names())
    ]
    write_safetensors(folder / WEIGHTS, plan, step=step)
    return seal(folder, card)
