"""MLX's adapter folders (`mlx_lm`): `adapters.safetensors` and what its loader reads of `adapter_config.json`.

Factors lie transposed: `lora_a` is (inputs, rank), `lora_b` (rank, outputs), DoRA's magnitude is `m`. One rank and one
scale hold for all modules, so smaller ranks are padded with zeros and other scales are multiplied into `lora_b`.
"""

import re
from pathlib import Path

import msgspec
import numpy as np

from catena.artifacts import tensors
from catena.artifacts.files import CONFIG, list_files, read_small
from catena.artifacts.formats.arrays import Floats, Planned, load, write_safetensors
from catena.artifacts.formats.factors import Factors, LoraWeights, check_fit, even_scales, must_act_always
from catena.artifacts.gate import MAX_CONFIG_BYTES, BaseShape
from catena.artifacts.refusal import refused
from catena.artifacts.strict_json import read_object

FILE = "adapters.safetensors"
PARTS = ("lora_a", "lora_b", "m")
IN_BLOCK = re.compile(r"model\.layers\.\d+\.")


class _Parameters(msgspec.Struct):
    rank: int
    scale: float


class _Config(msgspec.Struct):
    lora_parameters: _Parameters
    fine_tune_type: str = "lora"


def write_mlx(adapter: LoraWeights, folder: Path) -> None:
    """Write an adapter into an empty folder. Raises Invalid (`unsupported_adapter`) for an activated LoRA."""
    must_act_always(adapter, "MLX")
    scale, b_by_module = even_scales(adapter)
    plan: list[Planned] = []
    for path, factors in adapter.modules.items():
        spare = adapter.rank - factors.rank
        named = {
            "lora_a": np.pad(factors.A_RI.T, ((0, 0), (0, spare))),
            "lora_b": np.pad(b_by_module[path].T, ((0, spare), (0, 0))),
        }
        if factors.magnitude_O is not None:
            named["m"] = factors.magnitude_O
        plan += [_planned(f"{path}.{part}", values, adapter.dtype) for part, values in named.items()]
    config = {
        "fine_tune_type": "dora" if adapter.dora else "lora",
        # MLX counts layers from the last; -1 means all, and a layer without tensors keeps factors of no effect.
        "num_layers": -1,
        "lora_parameters": {
            "rank": adapter.rank,
            "scale": scale,
            "dropout": 0.0,
            "keys": sorted({IN_BLOCK.sub("", path) for path in adapter.modules}),
        },
    }
    (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config)))
    write_safetensors(folder / FILE, plan)


def read_mlx(folder: Path, shape: BaseShape) -> LoraWeights:
    """The adapter in a folder of MLX's. Raises Refused for anything that is not LoRA or DoRA on layers of this base."""
    files = list_files(folder, "adapter")
    for name in (CONFIG, FILE):
        if name not in files:
            raise refused("adapter", "missing_file", f"{folder} has no {name}; name the folder that mlx_lm.lora wrote")
    config = _read_config(read_small(files[CONFIG], MAX_CONFIG_BYTES, "adapter"))
    header = tensors.read_header(files[FILE])
    tensors.check_finite(files[FILE], header)
    grouped: dict[str, dict[str, Floats]] = {}
    for name, info in header.items():
        module, _, part = name.rpartition(".")
        if part not in PARTS:
            raise refused("adapter", "bad_tensor", f"{FILE}: {name!r} is no LoRA factor; train with lora or dora")
        grouped.setdefault(module, {})[part] = load(files[FILE], info)
    dora = config.fine_tune_type == "dora"
    wanted = set(PARTS) if dora else {"lora_a", "lora_b"}
    for module, parts in grouped.items():
        if set(parts) != wanted:
            odd = ", ".join(sorted(set(parts) ^ wanted))
            raise refused("adapter", "incomplete", f"{FILE}: {module!r} lacks or adds {odd}; export it again")
    modules = {
        module: Factors(
            A_RI=np.ascontiguousarray(parts["lora_a"].T),
            B_OR=np.ascontiguousarray(parts["lora_b"].T),
            scale=config.lora_parameters.scale,
            magnitude_O=parts.get("m"),
        )
        for module, parts in grouped.items()
    }
    dtypes = {info.dtype for info in header.values()}
    return check_fit(LoraWeights(modules=modules, dtype=dtypes.pop() if len(dtypes) == 1 else "F32"), shape, FILE)


def _read_config(raw: bytes) -> _Config:
    tree = read_object(raw, CONFIG, "adapter", "bad_config")
    kind = tree.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise refused("adapter", "bad_config", f"{CONFIG}: fine_tune_type {kind!r}; lora and dora can be converted")
    try:
        return msgspec.convert(tree, _Config)
    except msgspec.ValidationError as error:
        raise refused("adapter", "bad_config", f"{CONFIG}: {error}; mlx_lm writes rank and scale there") from error


def _planned(name: str, values: Floats, dtype: str) -> Planned:
    return Planned(name=name, shape=values.shape, dtype=dtype, make=lambda: values)
