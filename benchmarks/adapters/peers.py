"""The others' side: transformers and PEFT on the same model, in this process."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch

from benchmarks.adapters.subject import Subject


def mixed(subject: Subject, prompts: Sequence[Sequence[int]], names: Sequence[str], write: int) -> float:
    """Decoded tokens a second of PEFT's `adapter_names` on one static batch, its prompts' reading taken off."""
    rows = [names[number % len(names)] for number in range(len(prompts))]
    return _decoded(subject.peft, prompts, write, adapter_names=rows)


def one_at_a_time(subject: Subject, prompts: Sequence[Sequence[int]], names: Sequence[str], write: int) -> float:
    """The same rows by `set_adapter`, each adapter's rows as a batch of their own."""
    seconds = 0.0
    for number, name in enumerate(names):
        subject.peft.set_adapter(name)
        some = prompts[number :: len(names)]
        seconds += len(some) * (write - 1) / _decoded(subject.peft, some, write)
    return len(prompts) * (write - 1) / seconds


def static(subject: Subject, prompts: Sequence[Sequence[int]], writes: Sequence[int], rows: int) -> float:
    """Wanted tokens a second of `generate` in static batches: each waits for its longest, shorter ones are padded."""
    with subject.peft.disable_adapter(), torch.inference_mode():
        began = perf_counter()
        for at in range(0, len(prompts), rows):
            _generate(subject.peft, prompts[at : at + rows], max(writes[at : at + rows]))
        return sum(writes) / (perf_counter() - began)


def _decoded(model: Any, prompts: Sequence[Sequence[int]], write: int, **options: Any) -> float:
    with torch.inference_mode():
        began = perf_counter()
        _generate(model, prompts, 1, **options)
        read = perf_counter()
        _generate(model, prompts, write, **options)
        return len(prompts) * (write - 1) / max(perf_counter() - read - (read - began), 1e-9)


def _generate(model: Any, prompts: Sequence[Sequence[int]], write: int, **options: Any) -> None:
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    model.generate(
        input_ids=tokens,
        attention_mask=(tokens != 0).long(),
        max_new_tokens=write,
        min_new_tokens=write,
        do_sample=False,
        **options,
    )
