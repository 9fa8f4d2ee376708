"""How a token is drawn from logits, and the lossless rule by which drafted tokens are accepted.

Legend: B rows, V vocabulary, K drafted tokens. Every row draws from its own generator, so that an answer does not
depend on who shares its batch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from catena.adapters.core.work import Sampling


@dataclass(slots=True, kw_only=True)
class Draw:
    """How one row draws; `counts` are of its own tokens so far, kept when a penalty asks for them."""

    temperature: float
    top_p: float
    rng: random.Random
    presence: float = 0.0
    frequency: float = 0.0
    top: int = 0
    counts: dict[int, int] = field(default_factory=dict)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether tokens already written become less likely."""
        return self.presence != 0.0 or self.frequency != 0.0


def draw_of(sampling: Sampling, default_temperature: float, stream: str) -> Draw:
    """The draw that a request asks for; `stream` names the answer among those of one seed."""
    given = sampling.temperature
    return Draw(
        temperature=default_temperature if given is None else given,
        top_p=sampling.top_p,
        rng=random.Random(f"{sampling.seed}:{stream}"),
        presence=sampling.presence_penalty,
        frequency=sampling.frequency_penalty,
        top=sampling.top if sampling.logprobs else 0,
    )


def penalise(logits_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Logits less OpenAI's penalties: presence once, frequency times the count, of tokens already written."""
    if not any(draw.penalised and draw.counts for draw in draws):
        return logits_BV
    logits_BV = logits_BV.clone()
    for row, draw in enumerate(draws):
        if draw.penalised and draw.counts:
            tokens = torch.tensor(list(draw.counts), device=logits_BV.device)
            counts = torch.tensor(list(draw.counts.values()), device=logits_BV.device, dtype=logits_BV.dtype)
            logits_BV[row, tokens] -= draw.presence + draw.frequency * counts
    return logits_BV


def probabilities(logits_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """What each row draws from, (B, V), summing to 1: temperature, then the nucleus. Greedy rows: all on one token."""
    heat_B1 = torch.tensor([[draw.temperature or 1.0] for draw in draws], device=logits_BV.device)
    logits_BV = logits_BV.float()
    if any(draw.greedy for draw in draws):
        cold_B1 = torch.tensor([[draw.greedy] for draw in draws], device=logits_BV.device)
        best_B1 = logits_BV.argmax(-1, keepdim=True)
        only_BV = torch.full_like(logits_BV, -torch.inf).scatter_(1, best_B1, 0.0)
        logits_BV = torch.where(cold_B1, only_BV, logits_BV)
    probs_BV = torch.softmax(logits_BV / heat_B1, -1)
    if all(draw.top_p >= 1.0 for draw in draws):
        return probs_BV
    share_B1 = torch.tensor([[draw.top_p] for draw in draws], device=logits_BV.device)
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True)
    # A token stays if the likelier ones before it do not reach the share by themselves; the likeliest always stays.
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    sorted_BV = sorted_BV.masked_fill((before_BV >= share_B1) & (share_B1 < 1.0), 0.0)
    sorted_BV[:, 0] = sorted_BV[:, 0].clamp_min(torch.finfo(sorted_BV.dtype).tiny)
    kept_BV = torch.zeros_like(probs_BV).scatter_(1, order_BV, sorted_BV)
    return kept_BV / kept_BV.sum(-1, keepdim=True)


def pick(probs_BV: Tensor, uniforms: Sequence[float]) -> list[int]:
    """One token a row by inversion: the first whose cumulative share exceeds the row's uniform number in [0, 1)."""
    sums_BV = probs_BV.double().cumsum(-1)
    wanted_B1 = torch.tensor(uniforms, dtype=torch.float64, device=probs_BV.device).unsqueeze(1) * sums_BV[:, -1:]
    found_B = torch.searchsorted(sums_BV, wanted_B1, right=True)[:, 0].clamp_max(probs_BV.shape[1] - 1)
    tokens: list[int] = found_B.tolist()
    return tokens


def accept(
    proposal: Sequence[int], drafted: Sequence[Tensor], target_KV: Tensor, rng: random.Random
) -> tuple[int, int]:
    """How many drafted tokens stand, and the token that follows them; the result is drawn as from the target alone.

    `drafted` are the draft's own distributions, `target_KV` the target's at the same places and one beyond, (K + 1, V).
    Source: speculative sampling, arXiv 2211.17192, algorithm 1.
    """
    for place, token in enumerate(proposal):
        p, q = float(target_KV[place, token]), float(drafted[place][token])
        if rng.random() * q < p:
            continue
        left_V = (target_KV[place] - drafted[place]).clamp_min(0.0)
        # Equal but for rounding: then any rejection was a rounding error too.
        left_V = left_V if float(left_V.sum()) > 0.0 else target_KV[place]
        return place, pick(left_V.unsqueeze(0), [rng.random()])[0]
    return len(proposal), pick(target_KV[len(proposal)].unsqueeze(0), [rng.random()])[0]


def agree(proposal: Sequence[int], best: Sequence[int]) -> tuple[int, int]:
    """`accept` for greedy rows: the longest common start, and the target's own token after it."""
    for place, token in enumerate(proposal):
        if token != best[place]:
            return place, best[place]
    return len(proposal), best[len(proposal)]
