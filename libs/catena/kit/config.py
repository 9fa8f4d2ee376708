"""One YAML file configures every room; variables such as `CATENA__ROUTER__THRESHOLD` override it.

Read once per process, at the start, by each room's `__main__`; nothing else in Catena reads the environment.
An unknown key is an error that names it, so a typo never silently keeps a default.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
import yaml

from catena.kit.errors import Invalid

ROOMS = ("gateway", "router", "executor", "adapters", "trainer", "memory", "features", "learner")
PREFIX = "CATENA__"
SECRETS = ("token", "secret", "password", "key")
LOGIN = re.compile(r"://\S*@")

FilePath = Annotated[str, msgspec.Meta(description="a path; within the file, relative to the file's folder")]
PathOrName = Annotated[str, msgspec.Meta(description="the same where something lies there, else a name left as it is")]


ModelType = Literal["chat", "embedding", "classification", "token-classification", "prediction"]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the configuration: immutable, and an unknown key is refused."""


class BusConfig(Section, frozen=True, kw_only=True):
    """Where events go. `url` empty: the nats-server that `catena up` starts under `home`."""

    url: str = ""


class SqlConfig(Section, frozen=True, kw_only=True):
    """Where state lives. `url` empty: one SQLite file a room; else `postgresql://...`, one schema a room.

    `synchronous` is SQLite's: NORMAL survives kill -9, FULL survives a power cut too.
    """

    url: str = ""
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL"


class AuthConfig(Section, frozen=True, kw_only=True):
    """`service_token` is what rooms show each other; empty: the one kept in `home/keys/service.token`."""

    service_token: str = ""


class TelemetryConfig(Section, frozen=True, kw_only=True):
    """`otlp_endpoint` empty: spans go to rotating files under `home/traces`. `sample` is a share of traces, 0 to 1.

    `level` is that of logs from which on they are written; null: debug in the development profile, info elsewhere.
    """

    otlp_endpoint: str = ""
    sample: float = 1.0
    level: Literal["debug", "info", "warning", "error"] | None = None
    agent_types: list[str] = msgspec.field(default_factory=list)


class PriceConfig(Section, frozen=True, kw_only=True):
    """USD per million tokens, by kind; null: as other input, or output.

    `cached` is input that the provider had in its cache, `cache_write` what it wrote there.
    """

    input: float = 0.0
    output: float = 0.0
    cached: float | None = None
    cache_write: float | None = None
    reasoning: float | None = None


class RateConfig(Section, frozen=True, kw_only=True):
    """What the provider of a model allows us; 0: no limit. Calls beyond it wait in a short queue."""

    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    at_once: int = 0


class ModelConfig(Section, frozen=True, kw_only=True):
    """A model by name; `provider` and `base_url` name an outside one.

    `path` is the folder of a local base, or, where `adapters.hub` allows downloads, a hub id. `type` is what it does:
    `prediction` is a model of feature vectors, `token-classification` finds spans of a text. A local base is checked
    to be of its type.
    `draft_for` lists bases of the same tokenizer for which this one may draft in speculative decoding.
    `fallbacks` are asked instead, in this order, while this one fails. `version` is only shown. `capabilities` null:
    what models of its provider usually can; `prompt_logprobs` says that its server scores prompts and continues answers
    as vLLM's does.
    """

    name: str
    path: PathOrName = ""
    provider: str = "local"
    type: ModelType = "chat"
    base_url: str = ""
    api_key_env: str = ""
    upstream_name: str = ""
    price: PriceConfig = PriceConfig()
    context_tokens: int = 0
    draft_for: list[str] = msgspec.field(default_factory=list)
    fallbacks: list[str] = msgspec.field(default_factory=list)
    rate: RateConfig = RateConfig()
    version: str = ""
    capabilities: list[str] | None = None


class House(Section, frozen=True, kw_only=True):
    """What every room shares. `addresses` overrides a room's default unix socket, for example `router: router:50051`.

    `drain_s` is how long live answers may go on once a process is told to stop; on a cluster, as long as the longest.
    `embedding` is the folder that `python -m catena.embed.export --out FOLDER` (as `make up` runs it) made; empty:
    `home/models/minilm-int8`.
    `pipelines` holds, per strategy shape, the models and settings used when a request forces that shape;
    `catena.plan` gives it its meaning.
    `source` is no key of the file but its own path, for what is read again when it changes; unset: there is no file.
    """

    home: FilePath = "./.catena"
    profile: Literal["development", "staging", "production"] = "development"
    drain_s: float = 5.0
    bus: BusConfig = BusConfig()
    sql: SqlConfig = SqlConfig()
    auth: AuthConfig = AuthConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    embedding: FilePath = ""
    addresses: dict[str, str] = msgspec.field(default_factory=dict)
    models: list[ModelConfig] = msgspec.field(default_factory=list)
    pipelines: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    source: str | msgspec.UnsetType = msgspec.UNSET

    def folder(self, *parts: str) -> Path:
        """`home/parts...`, made if absent."""
        path = Path(self.home).resolve().joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def log_level(self) -> Literal["debug", "info", "warning", "error"]:
        """The level of logs as configured, else as the profile has it."""
        return self.telemetry.level or ("debug" if self.profile == "development" else "info")

    def embedding_folder(self) -> Path:
        """Where the embedding model is, whether or not it has been prepared."""
        return Path(self.embedding or Path(self.home) / "models" / "minilm-int8").resolve()

    def address(self, room: str) -> str:
        """Where `room` listens and is called, as a gRPC target.

        Unix socket paths end at 107 bytes, so a deep home gets its sockets in a short temporary folder.
        """
        if room in self.addresses:
            return self.addresses[room]
        home = Path(self.home).resolve()
        path = home / "run" / f"{room}.sock"
        if len(str(path)) > 100:
            digest = hashlib.sha256(str(home).encode()).hexdigest()[:12]
            path = Path(tempfile.gettempdir()) / f"catena-{os.getuid()}-{digest}" / f"{room}.sock"
        return f"unix:{path}"

    def database_url(self, room: str) -> str:
        """SQLAlchemy URL of the room's own database (async driver)."""
        if self.sql.url:
            return self.sql.url.replace("postgresql://", "postgresql+psycopg://", 1)
        return f"sqlite+aiosqlite:///{self.folder(room) / f'{room}.db'}"


Room = TypeVar("Room", bound=Section)
Environ = Mapping[str, str]
HOUSE_KEYS = frozenset(House.__struct_fields__) - {"source"}


def load(path: Path | None, room: str, kind: type[Room], environ: Environ | None = None) -> tuple[House, Room]:
    """Read the file (absent or None: all defaults), apply overrides, and return the house and this room's section.

    Relative paths inside (fields of type `FilePath` and `PathOrName`) are taken from the file's folder.
    Raises Invalid, naming the key, when a key is unknown or a value has the wrong type.
    """
    tree = {} if path is None else read_file(path, room, kind)
    override(tree, os.environ if environ is None else environ)
    house = convert({k: v for k, v in tree.items() if k in HOUSE_KEYS}, House, "")
    section = convert(tree.get(room, {}), kind, room)
    return msgspec.structs.replace(house, source=msgspec.UNSET if path is None else str(path.absolute())), section


def read_file(path: Path, room: str, kind: type[Section]) -> dict[str, Any]:
    """The file as nested dictionaries, the paths of the house and of this room's section made absolute."""
    if not path.is_file():
        raise Invalid(f"no configuration file at {path}; name one with --config", code="no_config")
    try:
        tree: dict[str, Any] = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Invalid(f"{path} is no YAML that can be read: {error}", code="bad_config") from error
    if not isinstance(tree, dict):
        raise Invalid(f"{path} holds a {type(tree).__name__}; write a mapping of sections", code="bad_config")
    folder = path.resolve().parent
    tree = _rooted(tree, House, folder)
    return tree | {room: _rooted(tree[room], kind, folder)} if room in tree else tree


def override(tree: dict[str, Any], environ: Environ) -> None:
    """Apply `CATENA__A__B=value` (values are YAML; their paths are those of the shell)."""
    for name, value in sorted(environ.items()):
        if name.startswith(PREFIX):
            try:
                told = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise Invalid(f"{name} is no YAML: {error}", code="bad_config") from error
            _put(tree, [part.lower() for part in name[len(PREFIX) :].split("__")], told, name)
    unknown = set(tree) - HOUSE_KEYS - set(ROOMS)
    if unknown:
        allowed = ", ".join(sorted(HOUSE_KEYS | set(ROOMS)))
        raise Invalid(f"unknown configuration key {min(unknown, key=str)!r}; known: {allowed}", code="bad_config")


def convert(value: Any, kind: type[Room], where: str) -> Room:
    """`value` as `kind`. Raises Invalid with the path of the offending key."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"configuration section {where or 'house'!r}: {error}", code="bad_config") from error


def secret(name: str, environ: Environ | None = None) -> str:
    """The value of the environment variable that an entry names (`api_key_env`); empty: it is not set."""
    return (os.environ if environ is None else environ).get(name, "")


def redacted(value: Any) -> Any:
    """A copy as plain data in which every value under a secret-like key, and who logs in by a URL, is `***`.

    For printing at start.
    """
    plain = msgspec.to_builtins(value)

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: "***" if v and isinstance(v, str) and _is_secret(k) else walk(v) for k, v in node.items()}
        if isinstance(node, str):
            return LOGIN.sub("://***@", node)
        return [walk(item) for item in node] if isinstance(node, list) else node

    return walk(plain)


def _is_secret(name: str) -> bool:
    return name.endswith(SECRETS)


def _rooted(value: Any, kind: Any, folder: Path) -> Any:
    """`value`, its relative paths taken from `folder`; what does not have the form of `kind` is left to `convert`."""
    if isinstance(value, str) and value and kind in (FilePath, PathOrName):
        path = folder / value
        return str(path) if kind == FilePath or path.exists() else value
    if isinstance(value, list) and get_origin(kind) is list:
        return [_rooted(item, get_args(kind)[0], folder) for item in value]
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, Section):
        kinds = {field.name: field.type for field in msgspec.structs.fields(kind)}
        return {name: _rooted(item, kinds.get(name), folder) for name, item in value.items()}
    return value


def _put(tree: dict[str, Any], parts: list[str], value: Any, name: str) -> None:
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise Invalid(f"{name} goes through {part!r}, which is not a section", code="bad_config")
    node[parts[-1]] = value
