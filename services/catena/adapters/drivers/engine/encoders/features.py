"""The plug-in point for models of feature vectors: an entry point of group `catena.models`.

A base folder whose `config.json` has `"model_type": "features"` and `"architectures": [NAME]` is read by the entry
point NAME: a function that takes the folder and returns a `FeatureModel`. Its code is installed, never in the folder.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from catena.adapters.core.encoding import Encoding, Found, Label
from catena.adapters.core.work import BaseFacts
from catena.adapters.drivers.engine.encoders.mlp import read_mlp
from catena.adapters.drivers.engine.encoders.passages import Passage
from catena.kit.errors import CatenaError, Invalid

GROUP = "catena.models"
FloatArray = npt.NDArray[np.floating[Any]]


class FeatureModel(Protocol):
    """`inputs` and `outputs` are the names of what goes in and comes out, in order."""

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the features, in the order of a row."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """Names of what `predict` gives, in order."""
        ...

    def predict(self, rows_NI: FloatArray) -> FloatArray:
        """(N, inputs) to (N, outputs)."""
        ...


Load = Callable[[Path], FeatureModel]
SHIPPED: Mapping[str, Load] = {"mlp": read_mlp}


class _Config(msgspec.Struct):
    architectures: list[str]


class Features:
    """A `FeatureModel` as an encoder of rows."""

    def __init__(self, model: FeatureModel, facts: BaseFacts) -> None:
        """Predict with `model`."""
        self.facts = facts
        self._model = model

    def read(self, asked: Encoding) -> list[Passage]:
        """The rows in the model's order. Raises Invalid (`bad_features`)."""
        return [Passage(tokens=1, row=self._ordered(row)) for row in asked.rows]

    def run(self, passages: Sequence[Passage]) -> list[Found]:
        """The outputs of each row, largest first."""
        rows_NI = np.asarray([passage.row for passage in passages], np.float64)
        values_NO = np.asarray(self._model.predict(rows_NI))
        names = list(self._model.outputs)
        if values_NO.shape != (len(passages), len(names)):
            raise ValueError(f"predict gave {values_NO.shape}, not {(len(passages), len(names))}")
        return [
            Found(labels=tuple(sorted(map(Label, names, values_O.tolist()), key=lambda label: -label.score)))
            for values_O in values_NO
        ]

    def _ordered(self, row: Sequence[float] | Mapping[str, float]) -> list[float]:
        inputs = self._model.inputs
        if not isinstance(row, Mapping):
            if len(row) != len(inputs):
                raise _bad(f"a row has {len(row)} features, the model takes {len(inputs)}: {', '.join(inputs)[:500]}")
            return list(row)
        if odd := sorted(set(row) ^ set(inputs)):
            what = "does not know" if odd[0] in row else "needs"
            raise _bad(f"the model {what} feature {odd[0]!r}; give {', '.join(inputs)[:500]}")
        return [row[name] for name in inputs]


def read_features(folder: Path) -> Features:
    """The plug-in that the folder names, with the folder read. Raises Invalid (`unknown_plugin`, `plugin_failed`)."""
    name = msgspec.json.decode((folder / "config.json").read_bytes(), type=_Config).architectures[0]
    try:
        model = _load(name)(folder)
    except CatenaError:
        raise
    except Exception as error:  # other people's code: its failure is this folder's, not the engine's
        raise Invalid(f"{folder.name}: plug-in {name!r} failed: {error!r:.300}", code="plugin_failed") from error
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Features(model, BaseFacts(bytes=size, context_tokens=0, dtype="float32"))


def _load(name: str) -> Load:
    if name in SHIPPED:
        return SHIPPED[name]
    found = entry_points(group=GROUP)
    if name not in found.names:
        known = ", ".join(sorted(found.names | SHIPPED.keys()))
        raise Invalid(
            f"no plug-in {name!r} in group {GROUP}; there is {known}; install the package that brings it",
            code="unknown_plugin",
        )
    load: Load = found[name].load()
    return load


def _bad(message: str) -> Invalid:
    return Invalid(message, code="bad_features")
