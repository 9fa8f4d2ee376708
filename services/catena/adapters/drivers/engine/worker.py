"""The engine's process: `python -m catena.adapters.drivers.engine.worker SETTINGS`, started by the room's supervisor.

The main thread runs the step loop; one thread reads orders and tokenises, one loads weights, one writes answers, one
runs encoders. So a load, a long prompt or an encoder never holds up a running answer for more than its share of the
interpreter.
"""

import contextlib
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import structlog
import torch

from catena.adapters.core.work import AdapterSource, BaseFacts, BaseSource, Loaded, Message, Weights, Work
from catena.adapters.drivers.engine import frames
from catena.adapters.drivers.engine.adapter_weights import read_parts
from catena.adapters.drivers.engine.arena import HOST, moved
from catena.adapters.drivers.engine.base_weights import DTYPES, auto_dtype, read_base, weight_bytes
from catena.adapters.drivers.engine.batch import Batch
from catena.adapters.drivers.engine.encoders import Turns, prepare, read_encoder
from catena.adapters.drivers.engine.loop import RETRY_AFTER_S, Held, Loop, failed
from catena.adapters.drivers.engine.lora import Adapter
from catena.adapters.drivers.engine.probe import probe
from catena.adapters.drivers.engine.text import Text
from catena.kit.clock import SystemClock
from catena.kit.errors import CatenaError, Unavailable
from catena.kit.leash import exit_with_parent

log = structlog.get_logger()
SWITCH_S = 0.001
"""How long one thread may keep the interpreter while the step loop waits for it."""


class Worker:
    """The engine at its end of the line."""

    def __init__(self, settings: frames.Settings, line: socket.socket) -> None:
        """Serve the room over `line`."""
        self._settings = settings
        self._line = line
        self._device = torch.device(settings.device)
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._loop = Loop(settings, self._tell, time.monotonic)
        self._prepared = threading.Event()
        self._turns = Turns(most_tokens=settings.encode_tokens, most_waiting=settings.encode_queue, tell=self._tell)

    def run(self) -> None:
        """Serve until the room hangs up."""
        threading.Thread(target=self._write, name="write", daemon=True).start()
        threading.Thread(target=self._read, name="read", daemon=True).start()
        threading.Thread(target=self._encode, name="encode", daemon=True).start()
        self._loop.run()

    def _tell(self, answer: frames.Answer) -> None:
        self._answers.put(frames.framed(answer))

    def _write(self) -> None:
        while (frame := self._answers.get()) is not None:
            parts = [frame]
            while not self._answers.empty():
                more = self._answers.get()
                if more is None:
                    return
                parts.append(more)
            try:
                self._line.sendall(b"".join(parts))
            except OSError:
                return

    def _read(self) -> None:
        try:
            while True:
                size = int.from_bytes(self._exactly(frames.LENGTH_BYTES), "big")
                self._handle(frames.decode_order(self._exactly(size)))
        except (EOFError, OSError):
            self._loop.post(None)
        except Exception:
            # The reader is this process's only way to be told anything: without it, start anew.
            log.exception("reader failed")
            os._exit(1)

    def _encode(self) -> None:
        try:
            if self._settings.encoders:
                prepare()
        except Exception:
            # Whoever loads an encoder is told; decoders can do without.
            log.exception("encoders not prepared")
        finally:
            self._prepared.set()
        try:
            self._turns.run()
        except Exception:
            # Without this thread its callers would wait for ever: start anew.
            log.exception("encoders failed")
            os._exit(1)

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size > 0:
            part = self._line.recv(min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _handle(self, order: frames.Order) -> None:
        loop = self._loop
        match order:
            case frames.Submit(call=call, work=work):
                self._guard(call, lambda: self._submit(call, work))
            case frames.Cancel(call=call):
                loop.post(lambda: loop.cancel(call))
                self._turns.post(lambda: self._turns.cancel(call))
            case frames.Encode(call=call, asked=asked):
                self._turns.post(lambda: self._turns.submit(call, asked))
            case frames.Count(call=call):
                loop.post(lambda: self._tell(frames.Reply(call, counters=loop.counters())))
            case _:
                self._move(order)

    def _move(self, order: frames.Move) -> None:
        """Bring something into memory, out of it, or from one memory to another."""
        loop, turns, call = self._loop, self._turns, order.call
        match order:
            case frames.LoadBase(base=base) if base.kind != "chat":
                self._loader.submit(self._guard, call, lambda: self._load_encoder(call, base))
            case frames.LoadBase(base=base):
                self._loader.submit(self._guard, call, lambda: self._load_base(call, base))
            case frames.LoadAdapter(adapter=adapter):
                self._loader.submit(self._guard, call, lambda: self._load_adapter(call, adapter))
            case frames.Stow(weights=weights):
                loop.post(lambda: self._stow(call, weights))
            case frames.Restore(weights=weights):
                loop.post(lambda: self._restore(call, weights))
            case frames.Unload(weights=weights) if weights.base in turns.held:
                turns.post(lambda: self._tell(frames.Reply(call, bytes=turns.forget(weights.base))))
            case frames.Unload(weights=weights):
                loop.post(lambda: self._tell(frames.Reply(call, bytes=loop.forget(weights))))

    def _guard(self, call: int, work: Callable[[], None]) -> None:
        try:
            work()
        except CatenaError as error:
            self._tell(failed(call, error))
        except Exception as error:
            # Whatever a library raises on a user's files or text is that order's failure only.
            log.exception("order failed")
            self._tell(failed(call, Unavailable(f"the engine failed: {type(error).__name__}", code="engine_failed")))

    def _submit(self, call: int, work: Work) -> None:
        text = self._held(work.weights.base).text
        tokens = text.chat(work.messages, work.tools) if work.messages else text.prompt(work.prompt)
        text.check_tokens(token for token, _ in work.sampling.logit_bias)
        grammars = [text.grammars.compile(asked) for asked in [work.constraint] * work.sampling.n if asked is not None]
        self._loop.post(lambda: self._loop.submit(call, work, tokens, grammars))

    def _load_base(self, call: int, base: BaseSource) -> None:
        held = self._loop.bases.get(base.name)
        if held is None:
            settings, folder = self._settings, Path(base.folder)
            decoder = read_base(
                folder,
                dtype=settings.dtype,
                device=self._device,
                kv_bytes=settings.kv_bytes,
                most_tokens=base.context_tokens,
                nf4=settings.quantization.get(base.name) == "nf4",
            )
            batch = Batch(
                decoder,
                max_rows=settings.max_batch,
                kv_bytes=settings.kv_bytes,
                prefill_tokens=settings.prefill_tokens,
                prefix_bytes=settings.prefix_bytes,
                ways=settings.ways,
            )
            held = Held(decoder=decoder, text=Text(folder, SystemClock().now), batch=batch)
            # The first question should not pay for compiling the template.
            with contextlib.suppress(CatenaError):
                held.text.chat((Message(role="user", content="hello"),))
        facts = BaseFacts(
            bytes=weight_bytes(held.decoder),
            context_tokens=held.decoder.shape.context,
            dtype=self._settings.quantization.get(base.name) or str(held.decoder.shape.dtype).removeprefix("torch."),
        )
        self._keep(lambda: self._loop.bases.setdefault(base.name, held), frames.Reply(call, base=facts))

    def _load_encoder(self, call: int, base: BaseSource) -> None:
        # Transformers is imported by one thread at a time, or it is found half made.
        self._prepared.wait()
        encoder = self._turns.held.get(base.name)
        if encoder is None:
            dtype = DTYPES[auto_dtype(self._settings.dtype, self._device)]
            encoder = read_encoder(base, dtype=dtype, device=self._device)
        self._turns.held[base.name] = encoder
        self._tell(frames.Reply(call, base=encoder.facts))

    def _load_adapter(self, call: int, source: AdapterSource) -> None:
        held = self._held(source.weights.base)
        began_s = time.monotonic()
        read = read_parts(source.weights.adapter, source.parts, held.decoder)
        read_s = time.monotonic()
        adapter = moved(read, self._device)
        copied_s = time.monotonic()
        if adapter.key not in held.proven:
            probe(held.decoder, adapter)
            held.proven.add(adapter.key)
        loaded = Loaded(
            bytes=adapter.bytes,
            read_s=read_s - began_s,
            copy_s=copied_s - read_s,
            probe_s=time.monotonic() - copied_s,
        )
        self._keep(lambda: held.adapters.update({adapter.key: adapter}), frames.Reply(call, loaded=loaded))

    def _stow(self, call: int, weights: Weights) -> None:
        """Called between two steps: the adapter is off the device at once, and then copied beside the next ones."""
        adapter = self._loop.take(weights)
        if adapter is None:
            self._tell(frames.Reply(call))
            return
        held = self._loop.bases[weights.base]

        def kept(there: Adapter) -> None:
            held.stowed[there.key] = there
            self._tell(frames.Reply(call, bytes=there.bytes))

        def copy() -> None:
            try:
                there = moved(adapter, HOST)
            except RuntimeError:
                # No host memory, say. It is off the device and may be loaded from disk again.
                log.exception("not stowed", adapter=adapter.key)
                self._tell(frames.Reply(call))
                return
            self._loop.post(lambda: kept(there))

        if self._device.type == HOST.type:
            kept(adapter)
        else:
            self._loader.submit(self._guard, call, copy)

    def _restore(self, call: int, weights: Weights) -> None:
        """Called between two steps; where there is a copy to be made, beside the next ones."""
        held = self._loop.bases.get(weights.base)
        adapter = held.stowed.get(weights.adapter) if held is not None else None
        if held is None or adapter is None:
            gone = Unavailable(f"{weights.adapter} is not in host memory; load it", code="not_resident")
            self._tell(failed(call, gone))
            return

        def back(there: Adapter, seconds: float) -> None:
            held.adapters[there.key] = there
            del held.stowed[there.key]
            self._tell(frames.Reply(call, loaded=Loaded(bytes=there.bytes, copy_s=seconds)))

        def copy() -> None:
            began_s = time.monotonic()
            there = moved(adapter, self._device)
            seconds = time.monotonic() - began_s
            self._loop.post(lambda: back(there, seconds))

        if self._device.type == HOST.type:
            back(adapter, 0.0)
        else:
            self._loader.submit(self._guard, call, copy)

    def _keep(self, change: Callable[[], object], reply: frames.Reply) -> None:
        """Make the change between two steps, and only then say so."""

        def kept() -> None:
            change()
            self._tell(reply)

        self._loop.post(kept)

    def _held(self, base: str) -> Held:
        held = self._loop.bases.get(base)
        if held is None:
            # Whoever asks has had it loaded: by an engine that was lost since.
            raise Unavailable(f"{base} is not in memory; ask again", code="not_resident", retry_after_s=RETRY_AFTER_S)
        return held


def configure_logs() -> None:
    """JSON lines to the supervisor's file; the whole telemetry would double the time to start."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )


def main(arguments: list[str]) -> None:
    """Connect to the room and serve it."""
    exit_with_parent()
    configure_logs()
    settings = msgspec.json.decode(arguments[0], type=frames.Settings)
    torch.set_num_threads(settings.threads)
    sys.setswitchinterval(SWITCH_S)
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(settings.socket)
        log.info("engine ready", device=settings.device, threads=settings.threads)
        Worker(settings, line).run()
    # Not sys.exit: a loader deep in a file must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
