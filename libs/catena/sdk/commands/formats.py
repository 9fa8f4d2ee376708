"""`catena adapters convert|export|import` and `catena models export|import|merge|verify`: files of other runtimes."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.kit.caller import DEVELOPER
from catena.kit.clock import World
from catena.kit.errors import Missing
from catena.sdk.terminal import Terminal, size

Source = Annotated[Path, typer.Argument(help="A PEFT or MLX folder, or a .gguf file; the format is recognised.")]
Out = Annotated[Path, typer.Argument(help="A new folder (PEFT, MLX) or file (GGUF); nothing is ever overwritten.")]
Base = Annotated[str, typer.Option(help="The base that the adapter fits: its folder, or its name under `models`.")]
To = Annotated[str, typer.Option(help="peft, mlx or gguf.")]
Given = Annotated[str, typer.Argument(help="A PEFT folder, or base@adapter[:version] of the running platform.")]
Unsigned = Annotated[bool, typer.Option(help="Accept a folder that nobody sealed or signed, as PEFT leaves it.")]
FORMATS = ("peft", "mlx", "gguf")


def convert(
    context: typer.Context,
    source: Source,
    out: Out,
    to: To,
    base: Base,
    factors: Annotated[str, typer.Option(help="Type of a GGUF's factors: F32 (exact) or F16 (half the size).")] = "F32",
) -> None:
    """Turn an adapter's files into another format; nothing is checked but that it fits its base.

    LoRA, rsLoRA, rank and alpha patterns and, but for GGUF, DoRA. Between PEFT and MLX nothing is lost.

    `catena adapters convert ./swapcase ./swapcase.gguf --to gguf --base ./my-base`
    """
    terminal: Terminal = context.obj
    _one_of("--to", to, FORMATS)
    _one_of("--factors", factors, ("F32", "F16"))

    def work() -> None:
        kind = _tools().convert(terminal.house, source, out, to=to, base=base, factors=factors)
        _tell(terminal, "Converted", {"from": kind, "to": to, "at": str(out)})

    terminal.do(work)


def export(
    context: typer.Context, adapter: Given, out: Out, to: To, base: Base = "", unsigned: Unsigned = False
) -> None:
    """Write a signed adapter for another runtime, after the gate, with a signed record of its digests beside it.

    The record is `OUT.manifest.json`; `catena models verify OUT` checks it. A DoRA adapter has no GGUF form: use
    `catena models export --adapter`, which merges it.

    `catena adapters export demo-small@swapcase ./swapcase-mlx --to mlx`
    """
    terminal: Terminal = context.obj
    _one_of("--to", to, FORMATS)

    def work() -> None:
        folder, told = _folder(terminal, adapter, base)
        tools, now_s = _tools(), World().clock.now()
        model = tools.base_of(terminal.house, told)
        found = tools.adapter_of(terminal.house, folder, model[1], unsigned=unsigned)
        record = tools.export(terminal.house, found, out, to=to, base=model, now_s=now_s)
        _tell(terminal, "Exported", {"adapter": found.name, "to": to, "at": str(out), "record": str(record)})

    terminal.do(work)


def import_(
    context: typer.Context,
    source: Source,
    out: Annotated[Path, typer.Argument(help="A new folder for the signed adapter.")],
    base: Base,
    called: Annotated[str, typer.Option("--as", help="Its name:version, for example swapcase:1 or mine:1.0.0.")],
    task: Annotated[list[str] | None, typer.Option(help="Task that it is for; may be given several times.")] = None,
    register: Annotated[bool, typer.Option(help="Register it with the running platform, too.")] = False,
) -> None:
    """Take in an adapter of another runtime: converted, sealed, signed by this installation, then past the gate.

    What the gate, or with --register the platform, refuses leaves no trace. The key is made at the first import and
    lies in `keys/import.pem` of the home; who has it can vouch for adapters here.

    `catena adapters import ./adapter.gguf ./mine --base demo-small --as mine:1 --register`
    """
    terminal: Terminal = context.obj

    def work() -> None:
        tools = _tools()
        name, _, version = called.partition(":")
        naming = tools.Naming(name=name, version=version or "1", base_name="", tasks=tuple(task or ()))
        checked = tools.take_in(terminal.house, source, out, naming, base=base, now_s=World().clock.now())
        there = _registered(terminal, out) if register else None
        told = {"adapter": f"{name}:{naming.version}", "digest": checked.digest, "rank": checked.max_rank}
        _tell(terminal, "Imported", told | {"size": size(checked.bytes), "signer": checked.signer, "at": str(out)})
        if there is not None:
            terminal.message(there)

    terminal.do(work)


def migrate(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="The signed folder of the version to move from.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the signed new version.")],
    to: Annotated[str, typer.Option(help="The new version.")],
    base: Base,
    former: Annotated[str, typer.Option(help="The base it was trained on, where that has another digest.")] = "",
    strategies: Annotated[str, typer.Option(help="YAML of strategies and the pairs of versions they are for.")] = "",
) -> None:
    """Move an adapter to another version of names, format or base; its weights stay as they are.

    A strategy named for the two versions is followed; else names are brought into PEFT's form of today, and each must
    mean a layer of the base. A base with another digest must hold the same weights in every adapted layer.

    `catena adapters migrate ./code-1 ./code-2 --to 2 --base demo-small --strategies ./migrations.yaml`
    """
    terminal: Terminal = context.obj

    def work() -> None:
        checked = _tools().migrate(terminal.house, source, out, version=to, bases=(base, former), strategies=strategies)
        _tell(terminal, "Migrated", {"to": to, "digest": checked.digest, "signer": checked.signer, "at": str(out)})

    terminal.do(work)


def export_model(
    context: typer.Context,
    base: Annotated[str, typer.Argument(help="The base: its folder, or its name under `models`.")],
    out: Annotated[Path, typer.Argument(help="A new .gguf file.")],
    adapter: Annotated[str, typer.Option(help="Merge this in: a PEFT folder, or base@adapter[:version].")] = "",
    at: Annotated[str, typer.Option(help="A level, for example Q6_K, or a profile, family/device; see below.")] = "",
    prompts: Annotated[Path | None, typer.Option(help="Texts to measure the loss on, one a line.")] = None,
    unsigned: Unsigned = False,
) -> None:
    """Write a base, or a base with an adapter merged in, as one GGUF file for llama.cpp, quantised if wished.

    With --prompts, llama.cpp loads the result and the unquantised model, and the record beside the file says how often
    the likeliest token stayed, how far logits moved and how much faster it writes. Under a profile's floor the next
    level up is taken. Levels: F32, F16, BF16, Q8_0, Q6_K, Q5_0, Q4_K_M, Q4_0. Profiles: `catena models profiles`;
    without --at, the default one.

    `catena models export demo-large ./large.gguf --at intent-classifier/mobile --prompts ./prompts.txt`
    """
    terminal: Terminal = context.obj

    def work() -> None:
        tools = _tools()
        model = tools.base_of(terminal.house, base)
        found = None
        if adapter:
            folder, _ = _folder(terminal, adapter, base)
            found = tools.adapter_of(terminal.house, folder, model[1], unsigned=unsigned)
        finish = tools.finish_of(terminal.house, at, prompts)
        told, record = tools.export_model(terminal, model, found, out, finish=finish, now_s=World().clock.now())
        _show_attempts(terminal, told)
        _tell(terminal, "Exported", {"level": told.level, "size": size(out.stat().st_size), "record": str(record)})

    terminal.do(work)


def import_model(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A .gguf model of a Llama, Mistral, Qwen2 or Qwen3.")],
    out: Annotated[Path, typer.Argument(help="A new folder; name it under `models` to serve it.")],
    dtype: Annotated[str, typer.Option(help="F32, F16 or BF16; empty: the file's own, F16 for a quantised one.")] = "",
) -> None:
    """Take in a GGUF model: dequantised into a transformers folder with its tokenizer, then past the gate.

    A signed record lies beside it as `OUT.manifest.json`; `catena models verify OUT` checks it.

    `catena models import ./model-q6_k.gguf ./models/mine`
    """
    terminal: Terminal = context.obj
    _one_of("--dtype", dtype, ("", "F32", "F16", "BF16"))

    def work() -> None:
        card = _tools().take_in_model(terminal, source, out, dtype=dtype, now_s=World().clock.now())
        types = ", ".join(f"{count} {kind}" for kind, count in sorted(card.source_types.items()))
        _tell(terminal, "Imported", {"base": card.name, "digest": card.digest, "matrices": types, "at": str(out)})

    terminal.do(work)


def merge(
    context: typer.Context,
    base: Annotated[str, typer.Argument(help="The base: its folder, or its name under `models`.")],
    adapter: Given,
    out: Annotated[Path, typer.Argument(help="A new folder; name it under `models` to serve it.")],
    unsigned: Unsigned = False,
) -> None:
    """Merge an adapter into its base, as a new base whose manifest names the digests of both.

    A signed record lies beside it as `OUT.manifest.json`; `catena models verify OUT` checks it.

    `catena models merge demo-small demo-small@swapcase ./models/swapper`
    """
    terminal: Terminal = context.obj

    def work() -> None:
        tools = _tools()
        model = tools.base_of(terminal.house, base)
        folder, _ = _folder(terminal, adapter, base)
        found = tools.adapter_of(terminal.house, folder, model[1], unsigned=unsigned)
        card = tools.merge(model, found, out, now_s=World().clock.now(), terminal=terminal)
        _tell(terminal, "Merged", {"base": card.base_digest, "adapter": card.adapter_digest, "digest": card.digest})

    terminal.do(work)


def verify(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="The file or folder; its record lies beside it.")],
    key: Annotated[Path | None, typer.Option(help="The signer's public key (RSA, PEM); empty: this home's.")] = None,
) -> None:
    """Check the signed record `MODEL.manifest.json` and show what it says."""
    terminal: Terminal = context.obj

    def work() -> None:
        told = _tools().verify(terminal.house, model, key)
        shown = {"sha256": told.model_hash, "signed": told.timestamp}
        _tell(terminal, f"{model.name} is as it was signed", shown | {k: str(v) for k, v in told.metadata.items()})

    terminal.do(work)


def profiles(
    context: typer.Context,
    edit: Annotated[bool, typer.Option(help="Put a copy into the home, to be changed; it then counts.")] = False,
) -> None:
    """List the quantisation profiles: which level for which adapter family on which device, and its floor."""
    terminal: Terminal = context.obj

    def work() -> None:
        told, path = _tools().profiles_of(terminal.house, copy=edit)
        rows = [(p.name, p.level, p.floor, p.size_cut, p.speed_gain) for p in (*told.profiles, told.default)]
        columns = ("profile", "level", "floor", "expected size cut", "expected speed gain")
        terminal.table(f"Quantisation profiles, {path or 'as shipped'}", columns, rows)

    terminal.do(work)


def _tools() -> ModuleType:
    """The conversions. Raises Missing (`no_formats`) where what they need is not installed."""
    try:
        from catena.sdk import conversions
    except ModuleNotFoundError as error:
        message = f"converting needs {error.name}; `pip install 'catena[formats]'`"
        raise Missing(message, code="no_formats") from error
    return conversions


def _folder(terminal: Terminal, told: str, base: str) -> tuple[Path, str]:
    """An adapter's folder and its base: given, or found by name in the platform and this home's store."""
    if (path := Path(told)).is_dir():
        if not base:
            raise Missing("an adapter's folder needs --base; name the base that it fits", code="no_base")
        return path, base
    if "@" not in told:
        raise Missing(f"no folder at {told!r}; name one, or base@adapter[:version]", code="no_source")
    digest = ""

    async def ask() -> None:
        nonlocal digest
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, DEVELOPER) as adapters:
            request = adapters_pb2.GetAdapterRequest(model=told)
            digest = (await adapters.GetAdapter(request)).adapter.digest

    terminal.run(ask())
    return _tools().kept(terminal.house, digest), base or told.partition("@")[0]


def _registered(terminal: Terminal, folder: Path) -> adapters_pb2.Adapter:
    """The adapter in a folder, made for that, as the platform registered it; refused, the folder goes too."""
    found = adapters_pb2.Adapter()
    request = adapters_pb2.RegisterAdapterRequest(path=str(folder.resolve()))

    async def ask() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, DEVELOPER) as adapters:
            found.CopyFrom((await adapters.RegisterAdapter(request)).adapter)

    try:
        terminal.run(ask())
    except typer.Exit:
        shutil.rmtree(folder)
        raise
    return found


def _show_attempts(terminal: Terminal, told: Any) -> None:
    """What was measured, level by level; nothing if nothing was."""
    columns = ("level", "size", "size cut", "top-1 agreement", "logit rms", "logit max", "speed gain")
    rows = [
        (
            tried.level,
            size(tried.bytes),
            tried.size_cut,
            tried.loss.top1_agreement,
            tried.loss.logit_rms,
            tried.loss.logit_max,
            tried.loss.speed_gain,
        )
        for tried in told.attempts
    ]
    if rows and not terminal.plain:
        terminal.table(f"Measured in llama.cpp, floor {told.floor:g}", columns, rows)


def _tell(terminal: Terminal, title: str, told: dict[str, Any]) -> None:
    terminal.table(title, ("what", "value"), [(key, str(value)) for key, value in told.items()])


def _one_of(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise typer.BadParameter(f"{option} {value!r}; use one of {', '.join(filter(None, known))}")
