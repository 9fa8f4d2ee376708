"""What many adapters cost on a GPU, in one run of a few minutes: `make bench-adapters-cuda`.

A random base of 7B's sizes in bf16 with 32 adapters of rank 16 on all linears, made on the device; the engine's own
batch beside PEFT's mixed batches and one adapter at a time. First, that both say the same. Needs torch, triton,
transformers, PEFT and msgspec (without Catena installed, `PYTHONPATH=libs:services`), and some 30 GB of the device's
memory. `--device cpu --size tiny` runs the same code on a CPU, where no figure counts. Written without a GPU at hand:
not yet measured on one.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.adapters.cuda_subject import RANK, SIZES, Subject, make
from benchmarks.adapters.rows import greedy
from catena.adapters.drivers.engine.batch import Batch
from catena.adapters.drivers.engine.frames import Ways
from catena.adapters.drivers.engine.rows import Row
from catena.adapters.drivers.engine.ways import AUTO

ROWS, PROMPT, PREFILL = 32, 64, 2048
KV_BYTES = 4 << 30
AS_ON_CUDA = Ways(kv="places", lora="mask", graphs="on")
EXACT, NEAR = 1e-4, 5e-2
"""How far logits may be from PEFT's, relative to the largest: in fp32, and in bf16 after 32 layers."""
Measure = Callable[[], float]


class Watched(Batch):
    """A batch that keeps the logits that each row drew from."""

    def __init__(self, *args: Any, **sizes: Any) -> None:
        """As a batch."""
        super().__init__(*args, **sizes)
        self.seen: dict[int, list[Tensor]] = {}

    def _draw(self, logits_WV: Tensor, spans: Sequence[tuple[Any, int, int]]) -> list[Row]:
        for row, begin, end in spans:
            self.seen.setdefault(id(row), []).append(logits_WV[begin:end].clone())
        return super()._draw(logits_WV, spans)


class Engine:
    """A batch that is kept over rounds, as a server keeps it, so that its graphs are captured once."""

    def __init__(self, subject: Subject, batch: Batch) -> None:
        """Fill and drain `batch`, whose decoder is the subject's."""
        self.batch = batch
        self._adapters = subject.adapters

    def add(self, prompt: Sequence[int], name: str, write: int) -> Row:
        """Queue a greedy answer of `write` tokens; the name of no adapter is the base's."""
        row = greedy(prompt, self._adapters.get(name), write)
        self.batch.add(row)
        return row

    def drain(self) -> None:
        """Step until every answer has ended."""
        while self.batch.busy:
            self.batch.step()

    def decoded(self, prompts: Sequence[Sequence[int]], names: Sequence[str], write: int) -> float:
        """Tokens a second while all rows decode, one adapter after the other over the rows."""
        batch = self.batch
        for number, prompt in enumerate(prompts):
            self.add(prompt, names[number % len(names)], write)
        while batch.waiting or any(row.cached < row.prompt for row in batch.running):
            batch.step()
        before, began = batch.tokens, perf_counter()
        self.drain()
        return (batch.tokens - before) / (perf_counter() - began)


class Peft:
    """The same model by PEFT and `generate`."""

    def __init__(self, subject: Subject) -> None:
        """Time what `subject` holds."""
        self._model, self._device = subject.peft, subject.decoder.shape.device

    def logits(self, tokens: Sequence[int], name: str) -> Tensor:
        """After every token of one text, (T, V) in fp32; the name of no adapter is the base's."""
        names = [name or "__base__"]
        with torch.inference_mode():
            given = torch.tensor([list(tokens)], device=self._device)
            logits: Tensor = self._model(input_ids=given, adapter_names=names, use_cache=False).logits[0]
        return logits.float()

    def mixed(self, prompts: Sequence[Sequence[int]], names: Sequence[str], write: int) -> float:
        """Decoded tokens a second of `adapter_names` on one static batch, the prompts' reading taken off."""
        rows = [names[number % len(names)] for number in range(len(prompts))]
        return len(prompts) * (write - 1) / self._seconds(prompts, write, adapter_names=rows)

    def one_at_a_time(self, prompts: Sequence[Sequence[int]], names: Sequence[str], write: int) -> float:
        """The same by `set_adapter`, each adapter's rows as a batch of their own; switching is not counted."""
        seconds = 0.0
        for number, name in enumerate(names):
            self._model.set_adapter(name)
            seconds += self._seconds(prompts[number :: len(names)], write)
        return len(prompts) * (write - 1) / seconds

    def _seconds(self, prompts: Sequence[Sequence[int]], write: int, **options: Any) -> float:
        read, whole = (self._generate(prompts, tokens, **options) for tokens in (1, write))
        return max(whole - read, 1e-9)

    def _generate(self, prompts: Sequence[Sequence[int]], write: int, **options: Any) -> float:
        given = torch.tensor([list(prompt) for prompt in prompts], device=self._device)
        with torch.inference_mode():
            began = perf_counter()
            self._model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=write,
                min_new_tokens=write,
                do_sample=False,
                **options,
            ).cpu()
            return perf_counter() - began


def check(subject: Subject, ways: Ways, most: float) -> bool:
    """Whether each row's logits are PEFT's of the same text, through chunked prompts and decoding, mixed with the base.

    They may be `most` of the largest away; how far adapters take the base's, which is more, is said beside it.
    """
    batch = Watched(subject.decoder, max_rows=8, kv_bytes=KV_BYTES // 16, prefill_tokens=48, ways=ways)
    engine, peft = Engine(subject, batch), Peft(subject)
    names = ["", *list(subject.adapters)[:7]]
    prompts = [subject.prompts(1, 9 + 5 * number, seed=number)[0] for number in range(len(names))]
    rows = [engine.add(prompt, name, 8) for prompt, name in zip(prompts, names, strict=True)]
    engine.drain()
    apart, change = [], []
    for row, name in zip(rows, names, strict=True):
        right_TV, base_TV = (peft.logits(row.tokens[:-1], who)[row.prompt - 1 :] for who in (name, ""))
        largest = float(right_TV.abs().max())
        apart.append(float((torch.cat(batch.seen[id(row)]) - right_TV).abs().max()) / largest)
        change.append(float((base_TV - right_TV).abs().max()) / largest)
    held = max(apart) <= most < min(change[1:])
    say(
        f"{subject.decoder.shape.dtype}: logits of {len(rows)} rows at most {max(apart):.1e} from PEFT's, held to "
        f"{most:.0e}; adapters change them by {min(change[1:]):.1e}{'' if held else ': NOT HELD'}"
    )
    return held


def measure(subject: Subject, ways: Ways, rounds: int, write: int) -> list[tuple[str, float, float, str]]:
    """What was compared, ours, the other's, what it is held to; medians, all sides taking turns."""
    batch = Batch(subject.decoder, max_rows=ROWS, kv_bytes=KV_BYTES, prefill_tokens=PREFILL, ways=ways)
    engine, peft, prompts = Engine(subject, batch), Peft(subject), subject.prompts(ROWS, PROMPT)
    names = list(subject.adapters)
    sides: dict[str, Measure] = {
        "base": lambda: engine.decoded(prompts, [""], write),
        "1": lambda: engine.decoded(prompts, names[:1], write),
        "8": lambda: engine.decoded(prompts, names[:8], write),
        "32": lambda: engine.decoded(prompts, names, write),
        "peft 8": lambda: peft.mixed(prompts, names[:8], write // 4),
        "peft 32": lambda: peft.mixed(prompts, names, write // 4),
        "one": lambda: peft.one_at_a_time(prompts, names, write // 4),
    }
    found: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side, run in sides.items():
            rate = run()
            if turn:  # The first turn compiles and captures.
                found[side].append(rate)
    rate = {side: statistics.median(rates) for side, rates in found.items()}
    limit = 1 / (1 + 32 * extra(subject))
    return [
        ("1 adapter / base alone", rate["1"], rate["base"], ""),
        ("8 adapters / base alone", rate["8"], rate["base"], ""),
        ("32 adapters / base alone", rate["32"], rate["base"], f">= 0.80, by bytes read {limit:.2f}"),
        ("8 adapters / PEFT adapter_names", rate["8"], rate["peft 8"], ""),
        ("32 adapters / PEFT adapter_names", rate["32"], rate["peft 32"], ">= 5"),
        ("32 adapters / PEFT one at a time", rate["32"], rate["one"], ">= 8"),
    ]


def extra(subject: Subject) -> float:
    """Bytes of an adapter over those of the base's linears: what a step that waits for memory reads more."""
    linears = sum(linear.bytes for layer in subject.decoder.layers for linear in layer.sites)
    return next(iter(subject.adapters.values())).bytes / linears


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(prog="bench-adapters-cuda", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(SIZES), default="7b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=int, default=64, help="tokens a row; PEFT writes a quarter of them")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    cuda = device.type == "cuda"
    if cuda and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is at hand; --device cpu --size tiny tries the script itself")
    ways = AUTO if cuda else AS_ON_CUDA
    began = perf_counter()
    small = make("tiny" if asked.size == "tiny" else "exact", 7, dtype=torch.float32, device=device, kv_bytes=KV_BYTES)
    held = check(small, ways, EXACT)
    dtype = torch.bfloat16 if cuda else torch.float32
    subject = make(asked.size, ROWS, dtype=dtype, device=device, kv_bytes=KV_BYTES)
    held &= check(subject, ways, NEAR if cuda else EXACT)
    name = torch.cuda.get_device_name(device) if cuda else "a CPU: no figure counts"
    say(f"\nLlama {asked.size}, {dtype}, rank {RANK} on all linears, {ROWS} rows, {name}, medians of {asked.rounds}")
    say(f"{'decoded tokens a second':<34}{'ours':>10}{'other':>10}{'ratio':>8}  held to")
    for what, ours, other, held_to in measure(subject, ways, asked.rounds, asked.write):
        say(f"{what:<34}{ours:>10.1f}{other:>10.1f}{ours / other:>8.2f}  {held_to}")
    say(f"\n{perf_counter() - began:.0f} s in all")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
