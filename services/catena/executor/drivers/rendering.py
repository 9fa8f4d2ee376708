"""The process in which users' templates run: jinja2's sandbox, under caps that the kernel holds.

Started by `drivers.templating` as `python -I -m catena.executor.drivers.rendering`, it reads frames from its standard
input and answers each on its standard output: four bytes of length (big-endian), then JSON. It has no environment,
can write no file, and ends when its input does, or when a template has used up its CPU.
"""

import contextlib
import json
import resource
import struct
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from jinja2 import StrictUndefined, Template, meta
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from catena.kit.leash import die_with_parent

CPU_S = 1
MEMORY_BYTES = 256 * 1024 * 1024
MOST_CHARS = 1_000_000
MOST_FILES = 16
"""The interpreter itself opens one now and then, to import what it needs for the first time."""
KEPT, KEPT_CHARS = 64, 4000
"""Compiled templates that are kept, none of a source longer than that: together they must leave most of the memory."""
_LENGTH = struct.Struct(">I")
Reply = dict[str, Any]
Compile = Callable[[str], Template]


def main() -> int:
    """Say that it is ready, with an empty frame, and answer until the input ends."""
    die_with_parent()
    cap()
    environment = sandbox()
    compile_ = compiling(environment)
    reading, writing = sys.stdin.buffer, sys.stdout.buffer
    write(writing, {})
    while (asked := read(reading)) is not None:
        _allow_cpu()
        write(writing, answer(environment, compile_, asked))
    return 0


def sandbox() -> ImmutableSandboxedEnvironment:
    """Templates that see what they are given and nothing else, chance included; a wrong name is an error."""
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name)
    environment.filters.pop("random")
    return environment


def compiling(environment: ImmutableSandboxedEnvironment) -> Compile:
    """Compiles each template once: that takes most of the time, and what was compiled keeps nothing of a rendering."""
    kept = lru_cache(maxsize=KEPT)(environment.from_string)
    return lambda source: kept(source) if len(source) <= KEPT_CHARS else environment.from_string(source)


def answer(environment: ImmutableSandboxedEnvironment, compile_: Compile, asked: Mapping[str, Any]) -> Reply:
    """`{text}` of a template over its scope, `{names}` that one without a scope needs, or `{error, code}`."""
    source = asked["template"]
    try:
        if "scope" not in asked:
            compile_(source)
            return {"names": sorted(meta.find_undeclared_variables(environment.parse(source)))}
        text, size = [], 0
        for piece in compile_(source).generate(asked["scope"]):
            size += len(piece)
            if size > MOST_CHARS:
                return _wrong("template_too_large", f"it grew beyond {MOST_CHARS} characters; insert less")
            text.append(piece)
        return {"text": "".join(text)}
    except TemplateSyntaxError as error:
        return _wrong("bad_template", f"line {error.lineno}: {error.message}")
    except UndefinedError as error:
        return _wrong("no_such_value", str(error))
    except SecurityError as error:
        return _wrong("template_refused", str(error))
    except (MemoryError, RecursionError) as error:
        return _wrong("template_too_costly", f"it takes too much memory ({type(error).__name__}); make it simpler")
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        return _wrong("template_failed", f"{type(error).__name__}: {error}")


def read(stream: IO[bytes]) -> Any:
    """The next frame; None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    return json.loads(stream.read(length))


def write(stream: IO[bytes], reply: Reply) -> None:
    """Send a frame."""
    body = json.dumps(reply).encode()
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def cap() -> None:
    """Nothing written, no core, no more memory than a template can need; as far as the system knows such limits.

    Where memory runs out all the same, this process goes before the one that it serves.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    limits = (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, MOST_FILES),
    )
    for kind, most in limits:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def _allow_cpu() -> None:
    """`CPU_S` more seconds from here on; past them the kernel ends the process (SIGXCPU)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + CPU_S, hard))


def _wrong(code: str, message: str) -> Reply:
    return {"error": message[:300], "code": code}


if __name__ == "__main__":
    sys.exit(main())
