"""The gate that every adapter passes before PEFT or an engine sees it, at import and at every load.

Order: names and sizes, signature, manifest and digest, base, configuration, header, shapes, values. Nothing is
executed, unpickled, mapped or looked up on a hub. The folder must be the store's own, so that nobody can change it
between this check and the load.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from catena.artifacts import lora, manifest, tensors
from catena.artifacts.digest import MAX_MANIFEST_BYTES, digest_of, file_rows
from catena.artifacts.files import CARD, CONFIG, MANIFEST, SIGNATURE, WEIGHTS, PlainFile, list_files, read_small
from catena.artifacts.lora import LoraConfig
from catena.artifacts.manifest import Manifest
from catena.artifacts.refusal import refused, untrusted
from catena.artifacts.signature import MAX_SIGNATURE_BYTES, verify
from catena.artifacts.tensors import TensorInfo

BaseShape = Mapping[str, tuple[int, int]]
"""The base's linear layers: module path, for example `model.layers.0.self_attn.q_proj`, to (inputs, outputs)."""

PREFIX = "base_model.model."
PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
DTYPES = frozenset({"F32", "F16", "BF16"})
MAX_CONFIG_BYTES = 1 << 20
MAX_CARD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What this installation accepts: caps, and whether an adapter needs a manifest and a signature."""

    max_rank: int = 256
    max_alpha: float = 4096.0
    max_bytes: int = 2 << 30
    require_manifest: bool = True
    require_signature: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One adapted linear layer: y += scale * B(A x), A is (rank, inputs), B is (outputs, rank).

    `magnitude` is DoRA's vector, (outputs,), or None. `bytes` counts all of them.
    """

    rank: int
    alpha: float
    scale: float
    inputs: int
    outputs: int
    A: TensorInfo
    B: TensorInfo
    magnitude: TensorInfo | None
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """An adapter that passed. `signer` is the name of the key that vouches, empty if unsigned and allowed.

    `modules` is by module path of the base; `bytes` is the exact sum of all tensors; `dtype` is theirs. `invocation`
    are the tokens that activate it, none: it always acts. `weights_digest` is BLAKE3 of the file that holds them.
    """

    folder: Path
    digest: str
    weights_digest: str
    signer: str
    manifest: Manifest | None
    dtype: str
    bytes: int
    dora: bool
    invocation: tuple[int, ...] = ()
    modules: Mapping[str, Module] = field(repr=False)

    @property
    def max_rank(self) -> int:
        """The largest rank of any module."""
        return max(module.rank for module in self.modules.values())


def check_adapter(
    folder: Path,
    *,
    base_digest: str,
    shape: BaseShape,
    keys: Mapping[str, Path],
    rules: Rules = Rules(),
    digest: str = "",
) -> Checked:
    """Check all of an adapter folder against the base that would carry it.

    `keys` are the public keys trusted here, name to PEM file; `digest`, if given, is what the registry expects.
    Raises Refused or Untrusted with a stable code; see `refusal` for the reasons.
    """
    files = list_files(folder, "adapter")
    _check_names(files, rules)
    signer = _check_signature(folder, files, keys, rules)
    rows = file_rows(files)
    actual = digest_of(rows)
    card = _check_manifest(files, actual, rules)
    if digest and actual != digest:
        raise untrusted(
            "adapter", "tampered", f"{folder.name} has digest {actual}, {digest} is registered; import it again"
        )
    if card is not None:
        _check_base(card, base_digest)
    config = lora.read_config(
        read_small(files[CONFIG], MAX_CONFIG_BYTES, "adapter"), max_rank=rules.max_rank, max_alpha=rules.max_alpha
    )
    header = tensors.read_header(files[WEIGHTS])
    modules = match(header, config, shape)
    tensors.check_finite(files[WEIGHTS], header)
    return Checked(
        folder=folder,
        digest=actual,
        weights_digest=next(digest for name, _, digest in rows if name == WEIGHTS),
        signer=signer,
        manifest=card,
        dtype=next(iter(header.values())).dtype,
        bytes=sum(module.bytes for module in modules.values()),
        dora=config.dora,
        invocation=config.invocation,
        modules=modules,
    )


def match(header: Mapping[str, TensorInfo], config: LoraConfig, shape: BaseShape) -> dict[str, Module]:
    """Every tensor matched to its module and every targeted module to its tensors, or Refused."""
    grouped = _group(header, config, shape)
    held = {name for module in grouped for name in lora.names_of(module)}
    for target in sorted(config.targets - held):
        _refuse_target(target, shape)
    for module in shape:
        if module not in grouped and config.targets_module(module):
            raise refused(
                "adapter", "incomplete", f"{WEIGHTS} has no tensors for {module!r}, which is targeted; export again"
            )
    return {module: _module(module, parts, config, shape[module]) for module, parts in sorted(grouped.items())}


def _group(header: Mapping[str, TensorInfo], config: LoraConfig, shape: BaseShape) -> dict[str, dict[str, TensorInfo]]:
    grouped: dict[str, dict[str, TensorInfo]] = {}
    dtypes = {info.dtype for info in header.values()}
    if len(dtypes) != 1 or not dtypes <= DTYPES:
        held = ", ".join(sorted(dtypes)) or "nothing"
        raise refused("adapter", "bad_tensor", f"{WEIGHTS} holds {held}; one of F32, F16, BF16 for all is served")
    for name, info in header.items():
        module, part = _split(name)
        if module not in shape:
            raise refused("adapter", "bad_tensor", f"tensor {name!r}: the base has no linear layer {module!r}")
        if not config.targets_module(module):
            raise refused("adapter", "bad_tensor", f"tensor {name!r}: {module!r} is not among target_modules")
        if part in grouped.setdefault(module, {}):
            raise refused("adapter", "bad_tensor", f"tensor {name!r} gives {part} of {module!r} twice; keep one")
        grouped[module][part] = info
    return grouped


def _split(name: str) -> tuple[str, str]:
    if name.startswith(PREFIX):
        for ending, part in PARTS.items():
            if name.endswith(f".{ending}"):
                return name[len(PREFIX) : -len(ending) - 1], part
    raise refused(
        "adapter",
        "bad_tensor",
        f"tensor {name[:200]!r} is no LoRA factor of a linear layer and would be dropped; export without it",
    )


def _module(module: str, parts: Mapping[str, TensorInfo], config: LoraConfig, shape: tuple[int, int]) -> Module:
    inputs, outputs = shape
    rank = config.rank_of(module)
    wanted = {"A": (rank, inputs), "B": (outputs, rank)} | ({"magnitude": (outputs,)} if config.dora else {})
    if set(parts) != set(wanted):
        odd = ", ".join(sorted(set(parts) ^ set(wanted)))
        raise refused(
            "adapter", "incomplete", f"{module!r} has {', '.join(sorted(parts))}; lacking or extra: {odd}; export again"
        )
    for part, extent in wanted.items():
        _check_shape(parts[part], extent, rank, config)
    return Module(
        rank=rank,
        alpha=config.alpha_of(module),
        scale=config.scale_of(module),
        inputs=inputs,
        outputs=outputs,
        A=parts["A"],
        B=parts["B"],
        magnitude=parts.get("magnitude"),
        bytes=sum(info.bytes for info in parts.values()),
    )


def _check_shape(info: TensorInfo, wanted: tuple[int, ...], rank: int, config: LoraConfig) -> None:
    if info.shape == wanted:
        return
    ranks = {"A": 0, "B": 1}
    axis = ranks.get(_split(info.name)[1])
    if axis is not None and len(info.shape) == 2 and info.shape[1 - axis] == wanted[1 - axis]:
        message = f"tensor {info.name!r} has rank {info.shape[axis]}, {CONFIG} says {rank}; save both from one training"
        raise refused("adapter", "bad_rank", message)
    message = (
        f"tensor {info.name!r} has shape {list(info.shape)}, this base needs {list(wanted)}; train it on this base"
    )
    raise refused("adapter", "bad_tensor", message)


def _check_names(files: Mapping[str, PlainFile], rules: Rules) -> None:
    caps = {
        WEIGHTS: rules.max_bytes,
        CONFIG: MAX_CONFIG_BYTES,
        MANIFEST: MAX_MANIFEST_BYTES,
        SIGNATURE: MAX_SIGNATURE_BYTES,
        CARD: MAX_CARD_BYTES,
        "LICENSE": MAX_CARD_BYTES,
        "NOTICE": MAX_CARD_BYTES,
    }
    for name, file in files.items():
        if name not in caps:
            raise refused("adapter", "unsafe_file", f"{name!r} has no place in an adapter; allowed: {', '.join(caps)}")
        if file.size > caps[name]:
            raise refused("adapter", "too_large", f"{name} has {file.size} bytes, at most {caps[name]} are served")
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise refused("adapter", "missing_file", f"the adapter has no {name}; save it with PEFT as safetensors")


def _check_signature(folder: Path, files: Mapping[str, PlainFile], keys: Mapping[str, Path], rules: Rules) -> str:
    if SIGNATURE in files or rules.require_signature:
        return verify(folder, keys)
    return ""


def _check_manifest(files: Mapping[str, PlainFile], actual: str, rules: Rules) -> Manifest | None:
    if MANIFEST not in files:
        if rules.require_manifest:
            raise refused("adapter", "missing_file", f"the adapter has no {MANIFEST}; seal it, naming its base")
        return None
    card = manifest.decode(read_small(files[MANIFEST], MAX_MANIFEST_BYTES, "adapter"))
    if card.digest != actual:
        raise untrusted(
            "adapter",
            "tampered",
            f"{MANIFEST} says digest {card.digest or 'none'}, the files have {actual}; seal it again",
        )
    return card


def _check_base(card: Manifest, base_digest: str) -> None:
    if not base_digest or card.base_digest != base_digest:
        raise refused(
            "adapter",
            "base_mismatch",
            f"{card.name} {card.version} fits base {card.base_name} ({card.base_digest or 'no digest'}), "
            f"this base is {base_digest or 'without digest'}; train it on this base or serve the other",
        )


def _refuse_target(target: str, shape: BaseShape) -> None:
    if any(target in lora.names_of(module) for module in shape):
        raise refused(
            "adapter", "incomplete", f"{WEIGHTS} has no tensors for target {target!r}; export the adapter again"
        )
    raise refused(
        "adapter", "bad_config", f"target_modules has {target!r}, which this base lacks; train it on this base"
    )
