"""Ask a base many questions at once, with plain transformers: for tests and measurements.

Tensors: B conversations, T positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demo.conversation import Message, encode
from demo.questions import Question, is_right

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer and how sure the model was of it.

    `least_probability` is that of the least likely token, `mean_logprob` the mean over the answer,
    both with the closing `<end>`; `tokens` counts it too.
    """

    text: str
    least_probability: float
    mean_logprob: float
    tokens: int


def load(folder: Path) -> "tuple[LlamaForCausalLM, PreTrainedTokenizerBase]":
    """Load a base and its tokenizer from a folder, never from a hub."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.train(False), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def ask(
    model: "LlamaForCausalLM",
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 48,
    batch: int = 128,
) -> list[Answer]:
    """Answer each conversation greedily, in order."""
    rows = [encode(tokenizer, conversation) for conversation in conversations]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        said = _generate(model, tokenizer, [rows[i] for i in part], max_new_tokens)
        answers.update(zip(part, said, strict=True))
    return [answers[i] for i in range(len(rows))]


def ask_plainly(
    model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerBase", questions: Sequence[Question], system: str = ""
) -> list[Answer]:
    """Ask bare questions, under a system message if one is given."""
    start = [{"role": "system", "content": system}] if system else []
    return ask(model, tokenizer, [[*start, {"role": "user", "content": q.text}] for q in questions])


def accuracy(answers: Sequence[Answer], questions: Sequence[Question]) -> float:
    """Share of right answers."""
    return sum(is_right(a.text, q) for a, q in zip(answers, questions, strict=True)) / len(questions)


def _generate(
    model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerBase", rows: list[list[int]], max_new_tokens: int
) -> list[Answer]:
    import torch
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    longest = max(map(len, rows))
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    tokens_BT = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        out: GenerateDecoderOnlyOutput = model.generate(  # type: ignore[misc, assignment]  # its own stub's self
            input_ids=tokens_BT,
            attention_mask=mask_BT,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best_BT = torch.stack([logits_BV.log_softmax(-1).max(-1).values for logits_BV in out.logits or ()], 1)
    answers = []
    for said, best in zip(out.sequences[:, longest:].tolist(), best_BT, strict=True):
        length = said.index(end) + 1 if end in said else len(said)
        text = str(tokenizer.decode(said[:length], skip_special_tokens=True))
        logprobs = best[:length]
        answers.append(Answer(text, logprobs.min().exp().item(), logprobs.mean().item(), length))
    return answers
