"""Greedy exact match on held-out rows. Tensors: B rows, T positions."""

from collections.abc import Sequence
from typing import Any

import torch

from catena.trainer.core.rows import Row, normalise
from catena.trainer.drivers.worker.encoding import encode_prompt, encode_row

BATCH = 64
SPARE_TOKENS = 8


def accuracy(model: Any, tokenizer: Any, rows: Sequence[Row]) -> float:
    """The share of rows whose greedy answer equals the row's, white space aside."""
    answers = answer(model, tokenizer, rows)
    right = sum(normalise(said) == normalise(row.answer) for said, row in zip(answers, rows, strict=True))
    return right / len(rows)


def answer(model: Any, tokenizer: Any, rows: Sequence[Row]) -> list[str]:
    """What the model says greedily to each row's prompt, in order."""
    model.eval()
    prompts = [encode_prompt(tokenizer, row.prompt) for row in rows]
    limits = [len(tokenizer(row.answer, add_special_tokens=False)["input_ids"]) + SPARE_TOKENS for row in rows]
    ends = _ends(model, tokenizer, rows[0])
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    answers: dict[int, str] = {}
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        said = _generate(model, tokenizer, [prompts[i] for i in part], max(limits[i] for i in part), ends)
        answers.update(zip(part, said, strict=True))
    return [answers[i] for i in range(len(rows))]


def _ends(model: Any, tokenizer: Any, row: Row) -> list[int]:
    """Every token that ends an answer: the base's own, and the one that the chat template closes a turn with."""
    own = model.generation_config.eos_token_id
    encoded = encode_row(tokenizer, row)
    closing = [token for token, learned in zip(encoded.tokens, encoded.learned, strict=True) if learned][-1]
    return sorted({closing, tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})


def _generate(model: Any, tokenizer: Any, prompts: list[list[int]], limit: int, ends: list[int]) -> list[str]:
    # Pads stand at the left, so that all rows go on from the same column.
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    tokens_BT = torch.tensor([[pad] * (longest - len(row)) + row for row in prompts], device=device)
    mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        out_BT = model.generate(
            input_ids=tokens_BT,
            attention_mask=mask_BT,
            do_sample=False,
            num_beams=1,
            max_new_tokens=limit,
            eos_token_id=ends,
            pad_token_id=pad,
        )
    said = []
    for row in out_BT[:, longest:].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        said.append(tokenizer.decode(row[:end], skip_special_tokens=True))
    return said
