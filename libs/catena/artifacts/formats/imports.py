"""The only way in for files of other runtimes: converted, sealed, signed, and then past the gate like anything else."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from catena.artifacts import signature, single
from catena.artifacts.base import check_base
from catena.artifacts.files import CONFIG
from catena.artifacts.formats import gguf_file, mlx_adapter
from catena.artifacts.formats.adalora import is_adalora, read_adalora
from catena.artifacts.formats.arrays import Step, silent
from catena.artifacts.formats.derived import Derived
from catena.artifacts.formats.derived import seal as seal_base
from catena.artifacts.formats.factors import LoraWeights, peft_config, read_peft, write_peft
from catena.artifacts.formats.gguf_adapter import read_gguf_adapter
from catena.artifacts.formats.gguf_import import import_gguf, sha256
from catena.artifacts.formats.mlx_adapter import read_mlx
from catena.artifacts.formats.models import BaseModel
from catena.artifacts.formats.placing import new_folder
from catena.artifacts.gate import Checked, check_adapter
from catena.artifacts.manifest import Manifest, Training, seal
from catena.artifacts.single import as_folder
from catena.kit.errors import Invalid, Missing

Format = Literal["peft", "mlx", "gguf"]
FORMATS: tuple[Format, ...] = ("peft", "mlx", "gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What an imported adapter is to be called. `base_name` is the base's name in the platform's configuration."""

    name: str
    version: str
    base_name: str
    tasks: tuple[str, ...] = ()
    licence: str = ""


def format_of(source: Path) -> Format:
    """Which format a file or folder is in. Raises Missing, or Invalid (`bad_format`) for none that is known."""
    if not source.exists():
        raise Missing(f"nothing at {source}; name a .gguf or .safetensors file or a folder", code="no_source")
    if source.is_file():
        with source.open("rb") as file:
            if file.read(4) == gguf_file.MAGIC:
                return "gguf"
        if source.suffix == single.SUFFIX:
            return "peft"
    elif (source / mlx_adapter.FILE).is_file():
        return "mlx"
    elif (source / CONFIG).is_file():
        return "peft"
    raise Invalid(
        f"{source} is neither a .gguf or .safetensors file nor a folder of PEFT's or MLX's", code="bad_format"
    )


def read_adapter(source: Path, base: BaseModel) -> LoraWeights:
    """An adapter in any format, fitted to its base; nobody has vouched for it yet."""
    kind = format_of(source)
    if kind == "gguf":
        return read_gguf_adapter(source, base)
    if kind == "mlx":
        return read_mlx(source, base.shape)
    with as_folder(source) as folder:
        return read_adalora(folder, base.shape) if is_adalora(folder) else read_peft(folder, base.shape)


def import_adapter(
    source: Path,
    folder: Path,
    base: BaseModel,
    naming: Naming,
    *,
    private: Path,
    keys: Mapping[str, Path],
    now_s: float,
) -> Checked:
    """Convert an adapter into a new PEFT folder, seal and sign it with `private`, and pass it through the gate.

    `keys` are the public keys trusted here; the folder is kept only if the gate lets it through.
    """
    adapter = read_adapter(source, base)
    config = peft_config(adapter, base.shape, naming.base_name)
    with new_folder(folder) as made:
        write_peft(adapter, made, base.shape, base_name=naming.base_name)
        card = Manifest(
            name=naming.name,
            version=naming.version,
            base_name=naming.base_name,
            base_digest=base.digest,
            tasks=naming.tasks,
            rank=config["r"],
            alpha=config["lora_alpha"],
            target_modules=tuple(config["target_modules"]),
            training=Training(method=f"{'dora' if adapter.dora else 'lora'}, imported from {format_of(source)}"),
            created_s=now_s,
            licence=naming.licence,
        )
        seal(made, card)
        signature.sign(made, private)
        checked = check_adapter(made, base_digest=base.digest, shape=base.shape, keys=keys)
    return replace(checked, folder=folder)


def import_base(
    source: Path, folder: Path, *, name: str, now_s: float, dtype: str = "", step: Step = silent
) -> Derived:
    """Convert a GGUF model into a new transformers folder and pass it through the gate for bases."""
    with new_folder(folder) as made:
        types = import_gguf(source, made, dtype=dtype, step=step)
        card = Derived(kind="gguf", name=name, source_sha256=sha256(source), source_types=types, created_s=now_s)
        sealed = seal_base(made, card)
        check_base(made, digest=sealed.digest)
    return sealed
