"""The gate for base models: safetensors only, no code of their own, known by digest.

Transformers imports Python that a base's configuration names, and fetches kernels from a hub when asked to; both are
refused here, before it reads the folder. The sizes of the linear layers come from the headers, for `check_adapter`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from catena.artifacts import tensors
from catena.artifacts.digest import files_digest
from catena.artifacts.files import SIGNATURE, PlainFile, list_files, read_small
from catena.artifacts.refusal import refused, untrusted
from catena.artifacts.signature import verify
from catena.artifacts.strict_json import read_object

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = re.compile(r"[A-Za-z0-9_-]{1,80}(\.[A-Za-z0-9_-]{1,40})?\.safetensors\Z")
READ = frozenset(
    {
        "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json", "generation_config.json",
        "merges.txt", "preprocessor_config.json", "processor_config.json", "sentencepiece.bpe.model",
        "special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
        "video_preprocessor_config.json", "vocab.json", "vocab.txt", "catena.json", INDEX, SIGNATURE,
        # What sentence-transformers writes beside an encoder.
        "config_sentence_transformers.json", "modules.json", "sentence_bert_config.json",
    }
)  # fmt: skip
STAGE_CONFIG = re.compile(r"[0-9]{1,2}_(Pooling|Normalize)/config\.json\Z")
DOCUMENT = re.compile(r"(LICENSE|LICENCE|NOTICE)(\.[A-Za-z]{1,8})?\Z|[A-Za-z0-9_. -]{1,80}\.md\Z")
CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "trust_remote_code"})
KERNEL_KEYS = ("attn_implementation", "experts_implementation")
MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRules:
    """What this installation accepts of a base; `check_values` reads all weights once for NaN and infinity."""

    max_bytes: int = 1 << 40
    check_values: bool = True
    require_signature: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedBase:
    """A base that passed. `bytes` is the sum of its tensors; `shape` its matrices as (inputs, outputs)."""

    folder: Path
    digest: str
    signer: str
    architecture: str
    bytes: int
    dtypes: frozenset[str]
    shape: Mapping[str, tuple[int, int]] = field(repr=False)


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def check_base(
    folder: Path,
    *,
    keys: Mapping[str, Path] | None = None,
    rules: BaseRules = BaseRules(),
    digest: str = "",
    links_within: Path | None = None,
) -> CheckedBase:
    """Check a base folder before transformers reads it.

    `digest`, if given, is what was registered. `links_within`: a folder into which links may point (a hub's cache).
    Raises Refused or Untrusted with codes `base_*`.
    """
    files = list_files(folder, "base", links_within)
    weights = _check_names(files, rules)
    architecture = _check_configs(files)
    signer = verify(folder, keys or {}, "base") if SIGNATURE in files or rules.require_signature else ""
    headers = {name: tensors.read_header(file, "base") for name, file in weights.items()}
    _check_index(files, headers)
    actual = files_digest(files, "base")
    if digest and actual != digest:
        message = f"{folder.name} has digest {actual}, {digest} is registered; restore it or register it again"
        raise untrusted("base", "tampered", message)
    if rules.check_values:
        for name, file in weights.items():
            tensors.check_finite(file, headers[name], "base")
    infos = [info for header in headers.values() for info in header.values()]
    return CheckedBase(
        folder=folder,
        digest=actual,
        signer=signer,
        architecture=architecture,
        bytes=sum(info.bytes for info in infos),
        dtypes=frozenset(info.dtype for info in infos),
        shape={
            info.name.removesuffix(".weight"): (info.shape[1], info.shape[0])
            for info in infos
            if len(info.shape) == 2 and info.name.endswith(".weight")
        },
    )


def _check_names(files: Mapping[str, PlainFile], rules: BaseRules) -> dict[str, PlainFile]:
    weights = {name: file for name, file in files.items() if WEIGHTS.match(name)}
    for name, file in files.items():
        if not (name in weights or name in READ or STAGE_CONFIG.match(name) or DOCUMENT.match(name)):
            raise refused("base", "unsafe_file", f"{name!r} has no place in a base (safetensors, no code); remove it")
        if name not in weights and file.size > MAX_TEXT_BYTES:
            raise refused("base", "too_large", f"{name} has {file.size} bytes, at most {MAX_TEXT_BYTES} are served")
    total = sum(file.size for file in weights.values())
    if total > rules.max_bytes:
        raise refused("base", "too_large", f"the weights have {total} bytes, at most {rules.max_bytes} are served")
    if CONFIG not in files or not weights:
        lacking = CONFIG if CONFIG not in files else "*.safetensors"
        raise refused("base", "missing_file", f"the base has no {lacking}; save it with safetensors")
    return weights


def _check_configs(files: Mapping[str, PlainFile]) -> str:
    """Refuse any configuration that names code or kernels; return the architecture's name."""
    architectures: object = []
    for name, file in files.items():
        if name.endswith("config.json"):
            tree = read_object(read_small(file, MAX_TEXT_BYTES, "base"), name, "base", "bad_config")
            _check_code(tree, name)
            architectures = tree.get("architectures", []) if name == CONFIG else architectures
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise refused("base", "bad_config", f"{CONFIG} names no architecture; save the base with transformers")
    return architectures[0]


def _check_code(tree: object, where: str) -> None:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        if not isinstance(node, dict):
            continue
        waiting += node.values()
        for key, value in node.items():
            if key in CODE_KEYS and value:
                raise refused(
                    "base", "bad_config", f"{where}: {key} names code to run; only built-in models are served"
                )
            if key.endswith(KERNEL_KEYS) and "/" in str(value):
                raise refused("base", "bad_config", f"{where}: {key} {str(value)[:80]!r} is fetched code; remove it")


def _check_index(files: Mapping[str, PlainFile], headers: Mapping[str, Mapping[str, object]]) -> None:
    owner: dict[str, str] = {}
    for file, header in headers.items():
        for tensor in header:
            if tensor in owner:
                raise refused("base", "bad_tensor", f"{tensor!r} is in {owner[tensor]} and in {file}; keep one")
            owner[tensor] = file
    if INDEX not in files:
        return
    tree = read_object(read_small(files[INDEX], MAX_TEXT_BYTES, "base"), INDEX, "base", "bad_config")
    try:
        named = msgspec.convert(tree, _Index).weight_map
    except msgspec.ValidationError as error:
        raise refused("base", "bad_config", f"{INDEX}: {error}; save the base again") from error
    if named != owner:
        odd = sorted(set(named.items()) ^ set(owner.items()))[0]
        raise refused("base", "incomplete", f"{INDEX} and the weights disagree on {odd[0]!r} in {odd[1]!r}; save again")
