"""Train a LoRA adapter for a demo base with PEFT alone, to find what the trainer's demo defaults should be."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demo.answering import load
from demo.curriculum import plain
from demo.questions import PRESENT, Question, questions
from demo.training import encode_lesson, learn

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OLD_QUESTIONS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train; `replay` is the share of old questions in each batch."""

    rank: int = 8
    alpha: int = 16
    rate: float = 5e-3
    steps: int = 150
    batch: int = 32
    replay: float = 0.4
    seed: int = 1


def train_adapter(
    folder: Path, corrections: Sequence[Question], recipe: Recipe
) -> "tuple[LlamaForCausalLM, PreTrainedTokenizerBase]":
    """Train on the corrections and on some old questions; returns the base with the adapter on it."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    base, tokenizer = load(folder)
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(LINEARS), task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=0.0)
    old = round(recipe.batch * recipe.replay)
    known = questions(OLD_QUESTIONS, recipe.seed, skills=PRESENT, part="training")
    for step in range(recipe.steps):
        optimiser.param_groups[0]["lr"] = recipe.rate * _rate(step, recipe.steps)
        lessons = [plain(rng.choice(corrections)) for _ in range(recipe.batch - old)]
        lessons += [plain(rng.choice(known)) for _ in range(old)]
        learn(base, [encode_lesson(turns) for turns in lessons])
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return base, tokenizer


def _rate(step: int, steps: int) -> float:
    return min((step + 1) / 10, 1.0, (steps - step) / (steps * 0.5))
