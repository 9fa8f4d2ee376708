"""(a) to (d) and (i): how fast tokens come in this process, beside the base alone, PEFT and transformers."""

import random
from collections.abc import Sequence
from typing import Any

from benchmarks.adapters import peers
from benchmarks.adapters.engine import Engine
from benchmarks.adapters.report import Measure, Report, Row, at_least
from benchmarks.adapters.subject import Compute, Subject

ROWS, PROMPT, WRITE = 32, 64, 64
COUNTS = (1, 2, 4, 8, 16, 32)
AIMS = {"float32": {8: 0.90, 32: 0.85}, "bfloat16": {8: 0.85, 32: 0.80}}
PEFT_AIMS = {"float32": 1.4, "bfloat16": 2.5}
VARIED, STATIC_ROWS = 32, 16
ZIPF = "zipf of 32"


def throughput(
    report: Report, engine: Engine, subject: Subject, dtype: str, counts: Sequence[int], *, zipf: bool
) -> None:
    """(a) Decoding with more and more adapters beside the base alone.

    The note is what would be left of the base's pace if a step took just as long as reading its weights once, so with
    few rows or arithmetic to spare: 1 / (1 + D r k), k an adapter's parameters per rank over the base's.
    """
    prompts = subject.prompts(ROWS, [PROMPT])
    names = list(subject.adapters)
    mixes = {f"{count} adapters": names[:count] for count in counts}
    if zipf:
        weights = [1 / (rank + 1) for rank in range(len(names))]
        mixes[ZIPF] = random.Random(3).choices(names, weights, k=ROWS)
    base, *found = report.medians(
        f"(a) {subject.size}",
        lambda: engine.decoded(prompts, [""], WRITE),
        *(lambda mix=mix: engine.decoded(prompts, mix, WRITE) for mix in mixes.values()),
    )
    for (what, mix), rate in zip(mixes.items(), found, strict=True):
        distinct = len(set(mix))
        bound = AIMS[dtype].get(distinct) if what != ZIPF else None
        report.add(
            Row(
                part="a",
                what=f"decoding {ROWS} rows, {what} / base alone",
                unit="tok/s",
                ours=rate,
                other=base,
                figure=rate / base,
                aim=at_least(bound) if bound else None,
                note=f"{distinct} distinct; {subject.bound(distinct):.2f} if reading weights were all",
            )
        )


def against_peft(report: Report, engine: Engine, peft: Any, subject: Subject, dtype: str) -> None:
    """(b), (c) The same batch by PEFT: rows mixed, and one adapter after the other."""
    prompts = subject.prompts(ROWS, [PROMPT])
    few, many = list(subject.adapters)[:8], list(subject.adapters)[:32]
    ours, mixed, alone, ours_many, mixed_many = report.medians(
        "(b), (c)",
        lambda: engine.decoded(prompts, few, WRITE),
        lambda: peers.mixed(peft, prompts, few, WRITE),
        lambda: peers.one_at_a_time(peft, prompts, few, WRITE),
        lambda: engine.decoded(prompts, many, WRITE),
        lambda: peers.mixed(peft, prompts, many, WRITE),
    )
    least = PEFT_AIMS[dtype]
    # "More at 32" than is asked for at 8.
    for part, what, mine, other, bound in (
        ("b", "8 mixed / PEFT adapter_names", ours, mixed, least),
        ("b", "32 mixed / PEFT adapter_names", ours_many, mixed_many, max(least, ours / mixed)),
        ("c", "8 mixed / PEFT, one adapter at a time", ours, alone, 4.0),
    ):
        aim = at_least(round(bound, 2))
        report.add(Row(part=part, what=what, unit="tok/s", ours=mine, other=other, figure=mine / other, aim=aim))


def against_generate(report: Report, engine: Engine, subject: Subject, compute: Compute) -> None:
    """(d) Requests of varied lengths on the base alone, beside static batches and transformers' continuous ones."""
    chance = random.Random(5)
    prompts = subject.prompts(VARIED, [chance.randrange(16, 128) for _ in range(VARIED)])
    writes = [chance.randrange(8, 96) for _ in prompts]
    model = peers.plain(subject, compute)
    with peers.continuous(peers.plain(subject, compute), STATIC_ROWS) as manager:
        ours, static, continuous = report.medians(
            "(d)",
            lambda: engine.served(prompts, writes, STATIC_ROWS, [""]),
            lambda: peers.static(model, prompts, writes, STATIC_ROWS),
            lambda: peers.served(manager, prompts, writes),
        )
    for what, other, bound in (("generate, static", static, 1.5), ("generate_batch", continuous, 1.3)):
        report.add(
            Row(
                part="d",
                what=f"{VARIED} varied requests, base / {what}",
                unit="tok/s",
                ours=ours,
                other=other,
                figure=ours / other,
                aim=at_least(bound),
                note=f"{STATIC_ROWS} rows at a time",
            )
        )


def activated(report: Report, engine: Engine, subject: Subject, context: int) -> None:
    """(i) Time to the first token on a context that the base has read: activated LoRA beside LoRA."""
    suffix = [7, 8, 9]
    shared = subject.prompts(1, [context])[0]
    measures: list[Measure] = [
        lambda: 1000 * engine.first_token(shared, suffix),
        lambda: 1000 * engine.first_token(shared, suffix, invocation=suffix),
    ]
    lora, alora = report.medians("(i)", *measures)
    what = f"to the first token at {context} shared, LoRA / aLoRA"
    report.add(Row(part="i", what=what, unit="ms", ours=alora, other=lora, figure=lora / alora, aim=at_least(10)))
