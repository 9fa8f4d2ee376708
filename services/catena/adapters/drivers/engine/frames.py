"""What travels between the room and the engine's process: MessagePack, each frame after its length in four bytes."""

from typing import Literal

import msgspec

from catena.adapters.core.encoding import Encoded, Encoding
from catena.adapters.core.work import AdapterSource, BaseFacts, BaseSource, Counters, Done, Loaded, Piece, Weights, Work

LENGTH_BYTES = 4
MAX_FRAME_BYTES = 64 << 20


class Ways(msgspec.Struct, frozen=True, kw_only=True):
    """In which ways steps are computed; `auto`: bags and rows on a CPU, places, mask and, with triton, graphs on CUDA.

    `kernels` are Triton's, for attention over blocks and LoRA under the mask, where triton is installed; `on` for a CPU
    needs its interpreter.
    """

    kv: Literal["auto", "bags", "places"] = "auto"
    lora: Literal["auto", "rows", "mask"] = "auto"
    graphs: Literal["auto", "on", "off"] = "auto"
    kernels: Literal["auto", "on", "off"] = "auto"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine is told on its command line, as JSON. Sizes in bytes, times in seconds.

    `quantization`: how weights are held, by base; of the others, as `dtype` has it.
    `encoders`: some of its bases will be; what they take is then imported while nothing runs that it would hold up.
    """

    socket: str
    device: str = "cpu"
    dtype: str = "auto"
    quantization: dict[str, Literal["nf4"]] = msgspec.field(default_factory=dict)
    threads: int = 1
    ways: Ways = Ways()
    max_batch: int = 32
    queue: int = 256
    kv_bytes: int = 1 << 30
    prefix_bytes: int = 256 << 20
    prefill_tokens: int = 512
    lookup_tokens: int = 0
    encoders: bool = False
    encode_tokens: int = 2048
    encode_queue: int = 4096
    coalesce_s: float = 0.025


class LoadBase(msgspec.Struct, frozen=True, tag=True):
    """Hold a base; answered by Reply."""

    call: int
    base: BaseSource


class LoadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Hold an adapter; answered by Reply."""

    call: int
    adapter: AdapterSource


class Stow(msgspec.Struct, frozen=True, tag=True):
    """Move an adapter from the device to host memory; answered by Reply."""

    call: int
    weights: Weights


class Restore(msgspec.Struct, frozen=True, tag=True):
    """Move an adapter back; answered by Reply."""

    call: int
    weights: Weights


class Unload(msgspec.Struct, frozen=True, tag=True):
    """Let an adapter go; answered by Reply."""

    call: int
    weights: Weights


class Encode(msgspec.Struct, frozen=True, tag=True):
    """Encode, label or predict; answered by Reply."""

    call: int
    asked: Encoding


class Count(msgspec.Struct, frozen=True, tag=True):
    """Tell the counters; answered by Reply."""

    call: int


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Begin a generation; answered by Output frames, then Finished or Failed."""

    call: int
    work: Work


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Stop a generation or an encoding; nothing answers."""

    call: int


Move = LoadBase | LoadAdapter | Stow | Restore | Unload
Order = Move | Encode | Count | Submit | Cancel


class Reply(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """An order was carried out."""

    call: int
    bytes: int = 0
    loaded: Loaded | None = None
    base: BaseFacts | None = None
    counters: Counters | None = None
    encoded: Encoded | None = None


class Output(msgspec.Struct, frozen=True, tag=True):
    """What a generation has to say since the last such frame."""

    call: int
    pieces: list[Piece]


class Finished(msgspec.Struct, frozen=True, tag=True):
    """A generation ended well."""

    call: int
    done: Done


class Failed(msgspec.Struct, frozen=True, tag=True):
    """An order or a generation failed; `kind` is the name of an error kind in `catena.kit.errors`."""

    call: int
    kind: str
    code: str
    message: str
    retry_after_s: float = 0.0


Answer = Reply | Output | Finished | Failed

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


def framed(message: Order | Answer) -> bytes:
    """The message as it goes over the line."""
    body = encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body
