"""The others' side in this process: transformers and PEFT on the same model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, StoppingCriteria

from benchmarks.adapters.subject import Compute, Subject

STEP_TOKENS = 512
PAGE_TOKENS = 256
STARVED_S = 120.0


class FirstToken(StoppingCriteria):
    """Notes when the first token was written; stops nothing."""

    def __init__(self) -> None:
        """Not yet."""
        self.at = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """A token of each row was written."""
        self.at = self.at or perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def plain(subject: Subject, compute: Compute) -> Any:
    """The base alone, as transformers reads it."""
    return AutoModelForCausalLM.from_pretrained(subject.base, dtype=compute.torch_dtype).eval()


def mixed(peft: Any, prompts: Sequence[Sequence[int]], names: Sequence[str], write: int) -> float:
    """Decoded tokens a second of PEFT's `adapter_names` on one static batch."""
    rows = [names[number % len(names)] for number in range(len(prompts))]
    return _decoded(peft, prompts, write, adapter_names=rows)


def one_at_a_time(peft: Any, prompts: Sequence[Sequence[int]], names: Sequence[str], write: int) -> float:
    """The same rows by `set_adapter`, each adapter's rows as a batch of their own."""
    seconds = 0.0
    for number, name in enumerate(names):
        peft.set_adapter(name)
        some = prompts[number :: len(names)]
        seconds += len(some) * (write - 1) / _decoded(peft, some, write)
    return len(prompts) * (write - 1) / seconds


def static(model: Any, prompts: Sequence[Sequence[int]], writes: Sequence[int], rows: int) -> float:
    """Wanted tokens a second of `generate` in static batches: each waits for its longest, shorter ones are padded."""
    began = perf_counter()
    for at in range(0, len(prompts), rows):
        _generate(model, prompts[at : at + rows], max(writes[at : at + rows]))
    return sum(writes) / (perf_counter() - began)


@contextmanager
def continuous(model: Any, rows: int) -> Iterator[Any]:
    """What transformers' `generate_batch` runs on, open for requests; it takes over how `model` attends."""
    # Without a number of blocks it fills nine tenths of the memory with keys and values.
    config = ContinuousBatchingConfig(
        num_blocks=2 * rows,
        page_size=PAGE_TOKENS,
        max_batch_tokens=STEP_TOKENS,
        max_requests_per_batch=rows,
        allow_block_sharing=False,
    )
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1)
    with model.continuous_batching_context_manager(
        generation_config=greedy, continuous_batching_config=config, timeout=5
    ) as manager:
        yield manager


def served(manager: Any, prompts: Sequence[Sequence[int]], writes: Sequence[int]) -> float:
    """Tokens a second over all requests, each of its own length, as `generate_batch` asks and waits for them."""
    began = perf_counter()
    for prompt, write in zip(prompts, writes, strict=True):
        manager.add_request(list(prompt), max_new_tokens=write)
    written = waiting = 0
    while waiting < len(prompts):
        result = manager.get_result(timeout=STARVED_S)
        if result is None or result.error:
            raise RuntimeError(f"generate_batch gave up: {result and result.error}")
        waiting += result.is_finished()
        written += len(result.generated_tokens) if result.is_finished() else 0
    if written != sum(writes):
        raise RuntimeError(f"generate_batch wrote {written} tokens, {sum(writes)} were asked for")
    return written / (perf_counter() - began)


def _decoded(model: Any, prompts: Sequence[Sequence[int]], write: int, **options: Any) -> float:
    first = FirstToken()
    _generate(model, prompts, write, stopping_criteria=[first], **options)
    return len(prompts) * (write - 1) / (perf_counter() - first.at)


@torch.inference_mode()
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
