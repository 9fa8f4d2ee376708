"""What remote engines have in common: a base's tokenizer on our side, and what none of them can do."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from catena.adapters.core.work import AdapterSource, BaseFacts, BaseSource, Part, Work
from catena.adapters.drivers.engine.text import Text
from catena.adapters.drivers.remote.http import Server
from catena.artifacts import tensors
from catena.artifacts.files import WEIGHTS, list_files
from catena.kit.errors import Invalid, Unavailable

SAMPLE = "Catena 0123456789: a(b)[c] déjà vu, 漢字.\n\n\tEnd"
"""A text that tokenizers write differently."""
LEAST_CHANGE = 1e-4
"""In log-probability; a server's own noise is measured beside it."""
NOISES = 3.0


@dataclass(frozen=True, slots=True)
class Held:
    """A base that a server runs: the server, its tokenizer here, and the most tokens of prompt and answer."""

    server: Server
    text: Text
    context: int


def refuse(work: Work, engine: str) -> None:
    """Raises Invalid for what no remote engine does."""
    if work.draft is not None:
        raise unsupported(engine, "draft models", "drafts_unsupported", "ask without one, or start it with its own")


def only_part(adapter: AdapterSource, engine: str) -> Part:
    """The one plain LoRA that an adapter is. Raises Invalid for anything else."""
    if len(adapter.parts) != 1 or adapter.parts[0].weight != 1.0:
        raise unsupported(engine, "weighted compositions", "compositions_unsupported", "merge them beforehand")
    part = adapter.parts[0]
    if part.dora:
        raise unsupported(engine, "DoRA", "dora_unsupported", "serve it on the local engine, or train plain LoRA")
    if part.invocation:
        raise unsupported(engine, "activated LoRA", "alora_unsupported", "serve it on the local engine")
    return part


def unsupported(engine: str, what: str, code: str, cure: str) -> Invalid:
    """What an engine cannot do, and what helps."""
    return Invalid(f"{engine} has no {what}; {cure}", code=code)


def not_held(base: str) -> Unavailable:
    """A base that has yet to be asked for, since its server was lost."""
    return Unavailable(f"{base} has to be looked for again at its server; ask again", code="engine_lost")


async def prompt_ids(held: Held, work: Work) -> list[int]:
    """The prompt in tokens, only the template's own words as special ones.

    Raises Invalid (`context_length_exceeded`, `bad_messages`).
    """
    if work.messages:
        ids = await asyncio.to_thread(held.text.chat, work.messages, work.tools)
    else:
        ids = await asyncio.to_thread(held.text.prompt, work.prompt)
    if len(ids) >= held.context:
        raise Invalid(
            f"the prompt has {len(ids)} tokens, {work.weights.base} takes {held.context} with the answer; shorten it",
            code="context_length_exceeded",
        )
    return ids


def most_tokens(held: Held, work: Work, prompt: int) -> int:
    """How long an answer may become."""
    left = held.context - prompt
    return min(work.sampling.max_tokens or left, left)


def check_words(server: Server, base: str, ours: Sequence[int], theirs: Sequence[int]) -> None:
    """Raises Invalid when a server's tokenizer is not that of the base that passed the gate."""
    if list(ours) != list(theirs):
        raise Invalid(
            f"the server at {server.url} does not tokenise as {base} does; start it with that base's folder",
            code="engine_serves_other",
        )


def check_change(model: str, base: Sequence[float], again: Sequence[float], adapted: Sequence[float]) -> None:
    """Raises Invalid (`adapter_no_effect`) unless an adapter changes what the base says by more than noise does."""
    noise = max((abs(a - b) for a, b in zip(base, again, strict=False)), default=0.0)
    change = max((abs(a - b) for a, b in zip(base, adapted, strict=False)), default=0.0)
    if len(base) == len(adapted) and change <= LEAST_CHANGE + NOISES * noise:
        raise Invalid(
            f"with {model} the server answers as its base does, within {change:.1e}; see its log for modules that it "
            "left out, or serve the base",
            code="adapter_no_effect",
        )


async def read_text(base: BaseSource, now: Callable[[], float]) -> Text:
    """The base's tokenizer and template, from the folder that passed the gate."""
    return await asyncio.to_thread(Text, Path(base.folder), now)


async def facts_of(base: BaseSource, context: int, dtype: str) -> BaseFacts:
    """What is known of a base elsewhere: the bytes of its weights as they lie here, where it is not quantised there."""

    def size() -> int:
        return sum(file.stat().st_size for file in Path(base.folder).glob("*.safetensors"))

    return BaseFacts(bytes=await asyncio.to_thread(size), context_tokens=context, dtype=dtype)


async def adapter_bytes(part: Part) -> int:
    """The bytes of an adapter's tensors; a server that pads to its highest rank takes more."""

    def size() -> int:
        header = tensors.read_header(list_files(Path(part.folder), "adapter")[WEIGHTS])
        return sum(info.bytes for info in header.values())

    return await asyncio.to_thread(size)
