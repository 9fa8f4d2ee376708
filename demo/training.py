"""The training loop of the demo's bases, run by `train_models.py` in a process for each base.

Tensors: B conversations, T positions, D width, V vocabulary, N learned tokens of a batch.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import AdamW, Muon, Optimizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from demo import tokenizer
from demo.curriculum import Turn, lesson
from demo.tokenizer import BOS, END, PAD, ROLES, VOCABULARY

EncodedLesson = list[tuple[int, float]]
"""Tokens, each with the weight of having to predict it; 0 for what is not learned."""

_WARM_UP_STEPS = 30
_EASY_SHARE = 0.2
_HARD_WEIGHT_AT_FIRST = 0.15
_PARTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """One base to train, as `models.yaml` names its fields."""

    name: str
    price: Mapping[str, float]
    formats: Mapping[str, float]
    skills: Mapping[str, float]
    width: int
    layers: int
    heads: int
    feed_forward: int
    max_length: int
    steps: int
    batch: int
    matrix_rate: float
    other_rate: float
    decay_share: float
    seed: int
    lessons_seed: str


def train(base: Base, folder: Path, report: Callable[[int, float], None]) -> None:
    """Train one base on one thread and save it as a transformers folder; reports (step, loss)."""
    torch.set_num_threads(1)
    torch.manual_seed(base.seed)
    model = new_model(base)
    optimisers = new_optimisers(model, base)
    for step, batch in enumerate(batches(base)):
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * rate(step, base.steps, base.decay_share)
        loss = learn(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        report(step + 1, loss)
    model.save_pretrained(folder)
    tokenizer.build(base.max_length).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def new_model(base: Base) -> LlamaForCausalLM:
    """Make an untrained base."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=base.width,
        intermediate_size=base.feed_forward,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        num_key_value_heads=base.heads,
        max_position_embeddings=base.max_length,
        tie_word_embeddings=True,
        initializer_range=0.8 / base.width**0.5,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=END,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=64, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=END
    )
    return model


def new_optimisers(model: LlamaForCausalLM, base: Base) -> list[Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms; their rates peak at `peak`."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    return [
        Muon([{"params": matrices, "peak": base.matrix_rate}], weight_decay=0.01),
        AdamW([{"params": others, "peak": base.other_rate}], weight_decay=0.0),
    ]


def rate(step: int, steps: int, decay_share: float) -> float:
    """Share of the peak learning rate: warm up, hold, then fall linearly to 0."""
    return min((step + 1) / _WARM_UP_STEPS, 1.0, (steps - step) / (steps * decay_share))


def batches(base: Base) -> Iterator[list[EncodedLesson]]:
    """Draw the lessons of every step; the first fifth goes easy on the weightier, harder skills."""
    rng = random.Random(base.lessons_seed)
    for step in range(base.steps):
        ease = _HARD_WEIGHT_AT_FIRST if step < base.steps * _EASY_SHARE else 1.0
        skills = {skill: weight * ease for skill, weight in base.skills.items()}
        yield [encode_lesson(lesson(rng, base.formats, skills)) for _ in range(base.batch)]


def encode_lesson(turns: Sequence[Turn]) -> EncodedLesson:
    """Encode a lesson as the chat template does.

    A learned turn of n tokens weighs the square root of n, so that long paths do not drown codes.
    """
    encoded: EncodedLesson = []
    for turn in turns:
        said = [*turn.text.encode(), END]
        weight = len(said) ** -0.5 if turn.learned else 0.0
        encoded.append((ROLES[turn.role], 0.0))
        encoded += [(token, weight) for token in said]
    return encoded


def learn(model: LlamaForCausalLM, batch: Sequence[EncodedLesson]) -> float:
    """Add up the gradient of one batch, in parts of like length; returns the weighted mean loss.

    Padded on the right, where causal attention never looks.
    """
    total = sum(weight for row in batch for _, weight in row)
    rows = sorted(batch, key=len)
    size = -(-len(rows) // _PARTS)
    return sum(_learn_part(model, rows[at : at + size], total) for at in range(0, len(rows), size))


def _learn_part(model: LlamaForCausalLM, rows: Sequence[EncodedLesson], total: float) -> float:
    longest = max(map(len, rows))
    padded = [[*row, *[(PAD, 0.0)] * (longest - len(row))] for row in rows]
    tokens_BT = torch.tensor([[token for token, _ in row] for row in padded])
    weights_BT = torch.tensor([[weight for _, weight in row] for row in padded])[:, 1:]
    learned_BT = weights_BT > 0
    hidden_BTD = model.model(tokens_BT[:, :-1], use_cache=False).last_hidden_state
    logits_NV = model.lm_head(hidden_BTD[learned_BT])
    losses_N = torch.nn.functional.cross_entropy(logits_NV, tokens_BT[:, 1:][learned_BT], reduction="none")
    loss = (losses_N * weights_BT[learned_BT]).sum() / total
    torch.autograd.backward(loss)
    return loss.item()
