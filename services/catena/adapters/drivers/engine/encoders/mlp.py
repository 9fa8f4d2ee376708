"""The shipped model of feature vectors: linear, logistic, or with hidden layers, from safetensors.

`config.json` names `inputs` and `outputs`, the `activation` between layers and the `link` of the last one. The tensors
are `layers.0.weight` (outputs, inputs), `layers.0.bias` and so on, and, where rows are to be standardised first, `mean`
and `scale`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from catena.kit.errors import Invalid

FloatArray = npt.NDArray[np.floating[Any]]
Layer = tuple[FloatArray, FloatArray]
WIDEST_EXPONENT = 700.0
"""Beyond it exp() of a double overflows."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What `config.json` says; `link` `identity`: the outputs are no probabilities."""

    inputs: list[str]
    outputs: list[str]
    activation: Literal["relu", "tanh"] = "relu"
    link: Literal["softmax", "sigmoid", "identity"] = "softmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """Implements `FeatureModel`. `layers` are weights (O, I) and biases (O)."""

    config: Config
    layers: tuple[Layer, ...]
    mean_I: FloatArray
    scale_I: FloatArray

    @property
    def inputs(self) -> list[str]:
        """Names of the features."""
        return self.config.inputs

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return self.config.outputs

    def predict(self, rows_NI: FloatArray) -> FloatArray:
        """The outputs after the link, (N, O)."""
        values = (rows_NI - self.mean_I) / self.scale_I
        for weight_OI, bias_O in self.layers[:-1]:
            values = values @ weight_OI.T + bias_O
            values = np.maximum(values, 0.0) if self.config.activation == "relu" else np.tanh(values)
        weight_OI, bias_O = self.layers[-1]
        return _linked(values @ weight_OI.T + bias_O, self.config.link)


def read_mlp(folder: Path) -> Mlp:
    """The model in `folder`; every tensor has its place. Raises Invalid (`base_bad_config`, `base_incomplete`)."""
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=Config)
    except msgspec.MsgspecError as error:
        raise Invalid(f"config.json of {folder.name}: {error}", code="base_bad_config") from error
    tensors: dict[str, FloatArray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= {name: tensor.astype(np.float64) for name, tensor in load_file(path).items()}
    width = len(config.inputs)
    mean_I = _taken(tensors, "mean", (width,)) if "mean" in tensors else np.zeros(width)
    scale_I = _taken(tensors, "scale", (width,)) if "scale" in tensors else np.ones(width)
    if not scale_I.all():
        raise Invalid("scale holds a zero; leave that feature out or give it 1", code="base_bad_tensor")
    layers: list[Layer] = []
    while (name := f"layers.{len(layers)}.weight") in tensors:
        out = len(tensors[name])
        layers.append((_taken(tensors, name, (out, width)), _taken(tensors, f"layers.{len(layers)}.bias", (out,))))
        width = out
    if not layers or width != len(config.outputs):
        raise Invalid(
            f"{len(layers)} layers end in {width} values for {len(config.outputs)} outputs; train it again",
            code="base_incomplete",
        )
    if tensors:
        raise Invalid(f"tensor {min(tensors)!r} has no place in this model; remove it", code="base_bad_tensor")
    return Mlp(config=config, layers=tuple(layers), mean_I=mean_I, scale_I=scale_I)


def _taken(tensors: dict[str, FloatArray], name: str, shape: tuple[int, ...]) -> FloatArray:
    tensor = tensors.pop(name, None)
    if tensor is None or tensor.shape != shape:
        got = "is missing" if tensor is None else f"is {tensor.shape}"
        raise Invalid(f"tensor {name!r} {got}; it should be {shape}", code="base_incomplete")
    return tensor


def _linked(values_NO: FloatArray, link: str) -> FloatArray:
    if link == "softmax":
        heat_NO = np.exp(values_NO - values_NO.max(1, keepdims=True))
        return np.asarray(heat_NO / heat_NO.sum(1, keepdims=True))
    if link == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-values_NO.clip(-WIDEST_EXPONENT, WIDEST_EXPONENT))))
    return values_NO
