"""What a model reads, writes and takes before its own calls tell, by mode: as others do, as far as they differ."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from catena.router.core.habits import Habit, Start
from catena.router.core.observation import Mode
from catena.router.core.samples import Key, Line, Sample, line

_SCATTER = Habit(mean=1.0, within=0.2, between=0.15, doubt=0.2)
_WRITTEN = Habit(mean=200.0, within=0.6, between=0.5, doubt=1.0)
_TAKEN = Habit(mean=1000.0, within=0.6, between=0.7, doubt=1.0)
"""Guesses at how calls, and models, differ: tokens read over what characters say, tokens written, milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """Tokens that a model reads and writes, milliseconds that it takes, before its own calls tell.

    `scatter`: tokens read over what `read`, or its own line, says.
    """

    read: Line
    scatter: Start
    written: Start
    taken: Start


NOWHERE = Starts(
    read=Line(),
    scatter=Start(mean=1.0, sd=0.5, worth=math.inf, freedom=math.inf),
    written=Start(mean=200.0, sd=160.0, worth=math.inf, freedom=math.inf),
    taken=Start(mean=1000.0, sd=700.0, worth=math.inf, freedom=math.inf),
)
"""Before any call was seen. Ends as wide as the doubt would break every cap on time, and nobody could be answered."""


def starts_of(samples: Mapping[Key, Sequence[Sample]]) -> dict[Mode, Starts]:
    """By mode where a model starts in it, as far as models are alike."""
    by_mode: dict[Mode, list[Sequence[Sample]]] = defaultdict(list)
    for (_, mode), seen in sorted(samples.items()):
        by_mode[mode].append(seen)
    return {mode: _starts(models) for mode, models in by_mode.items()}


def _starts(models: Sequence[Sequence[Sample]]) -> Starts:
    starts = NOWHERE
    read = [told for told in map(counted, models) if told]
    if read:
        every = line([sample for told in read for sample in told], _SCATTER.alone())
        scatter = _SCATTER.start([every.off(told) for told in read])
        starts = replace(
            starts,
            read=replace(every, relative_sd=scatter.next.sd),
            scatter=scatter,
            written=_WRITTEN.start([[(s.weight, float(s.fact.stage.output_tokens)) for s in told] for told in read]),
        )
    took = [told for told in map(timed, models) if told]
    if took:
        starts = replace(starts, taken=_TAKEN.start([[(s.weight, warm_ms(s)) for s in told] for told in took]))
    return starts


def counted(samples: Sequence[Sample]) -> list[Sample]:
    """Those whose tokens were told."""
    stages = [(sample, sample.fact.stage) for sample in samples]
    return [sample for sample, stage in stages if not stage.failed and stage.input_tokens + stage.output_tokens > 0]


def timed(samples: Sequence[Sample]) -> list[Sample]:
    """Those whose time was told."""
    return [s for s in samples if not s.fact.stage.failed and s.fact.stage.duration_ms > 0.0]


def warm_ms(sample: Sample) -> float:
    """Milliseconds without what loading took."""
    return max(sample.fact.stage.duration_ms - sample.fact.stage.load_ms, 1.0)
