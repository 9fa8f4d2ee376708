"""Users' templates, run in processes of their own: see `rendering` for what those may do."""

import asyncio
import contextlib
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from catena.kit.errors import Invalid, Late, Unavailable

MOST_SOURCE_CHARS = 64_000
MOST_SCOPE_BYTES = 4 * 1024 * 1024
KNOWN_SOURCES = 1000
START_S = 30.0
"""A process that starts is not the template's fault."""
GONE = (asyncio.IncompleteReadError, ConnectionError)


@dataclass(slots=True)
class Child:
    """One process; it answers one question at a time."""

    process: asyncio.subprocess.Process

    async def ask(self, body: bytes) -> Mapping[str, Any]:
        """Its answer. Raises what `GONE` lists when it ends instead."""
        assert self.process.stdin is not None
        self.process.stdin.write(len(body).to_bytes(4, "big") + body)
        await self.process.stdin.drain()
        return await self.hear()

    async def hear(self) -> Mapping[str, Any]:
        """What it says next."""
        assert self.process.stdout is not None
        length = int.from_bytes(await self.process.stdout.readexactly(4), "big")
        told: Mapping[str, Any] = msgspec.json.decode(await self.process.stdout.readexactly(length))
        return told

    async def end(self) -> None:
        """At once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


class SandboxedTemplates:
    """At most `children` processes, started when first needed; each template has `wall_s` seconds."""

    def __init__(self, *, children: int = 2, wall_s: float = 3.0) -> None:
        """Nothing is started yet."""
        self._gate = asyncio.Semaphore(children)
        self._wall_s = wall_s
        self._idle: list[Child] = []
        self._names: OrderedDict[str, frozenset[str]] = OrderedDict()

    async def names(self, source: str) -> frozenset[str]:
        """The values that a template needs. Raises Invalid (`bad_template`) where it is none."""
        known = self._names.get(source)
        if known is None:
            if len(source) > MOST_SOURCE_CHARS:
                longer = f"a template of {len(source)} characters > {MOST_SOURCE_CHARS}; shorten it"
                raise Invalid(longer, code="bad_template")
            told = await self._ask({"template": source})
            known = self._names[source] = frozenset(told["names"])
            while len(self._names) > KNOWN_SOURCES:
                self._names.popitem(last=False)
        return known

    async def render(self, source: str, scope: Mapping[str, Any]) -> str:
        """The template's text over those values of `scope` that it needs.

        Raises Invalid with the code of what went wrong, Late (`template_too_slow`), Unavailable.
        """
        needed = {name: scope[name] for name in await self.names(source) if name in scope}
        told = await self._ask({"template": source, "scope": needed})
        return str(told["text"])

    async def aclose(self) -> None:
        """End the processes."""
        while self._idle:
            await self._idle.pop().end()

    async def _ask(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            body = msgspec.json.encode(question)
        except UnicodeEncodeError as error:
            raise Invalid(f"template: {error}; send text that is Unicode", code="bad_template") from error
        if len(body) > MOST_SCOPE_BYTES:
            larger = f"a template with {len(body)} bytes of values > {MOST_SCOPE_BYTES}; give it less"
            raise Invalid(larger, code="template_too_large")
        async with self._gate:
            told = await self._asked(self._idle.pop() if self._idle else await _start(), body)
        if "error" in told:
            raise Invalid(f"template: {told['error']}", code=told["code"])
        return told

    async def _asked(self, child: Child, body: bytes) -> Mapping[str, Any]:
        """The answer of `child`, which is kept for the next question only if it gave one."""
        answered = False
        try:
            async with asyncio.timeout(self._wall_s):
                told = await child.ask(body)
            answered = True
            return told
        except TimeoutError:
            slow = f"a template took longer than {self._wall_s:g} s; make it simpler"
            raise Late(slow, code="template_too_slow") from None
        except msgspec.DecodeError as error:
            raise Invalid(f"a template wrote what is no text: {error}", code="template_failed") from error
        except GONE:
            costly = "a template used up the time or memory that it may have; make it simpler"
            raise Invalid(costly, code="template_too_costly") from None
        finally:
            if answered:
                self._idle.append(child)
            else:
                await child.end()


async def _start() -> Child:
    command = (sys.executable, "-I", "-m", "catena.executor.drivers.rendering")
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=nothing, env={}, cwd="/"
        )
    except OSError as error:
        raise Unavailable(f"no process for templates: {error}", code="no_templates") from error
    child, ready = Child(process), False
    try:
        async with asyncio.timeout(START_S):
            await child.hear()
        ready = True
    except (TimeoutError, *GONE) as error:
        raise Unavailable(
            "the process for templates does not start; is jinja2 installed?", code="no_templates"
        ) from error
    finally:
        if not ready:
            await child.end()
    return child
