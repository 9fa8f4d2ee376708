"""How a token is drawn from logits, and the lossless rule by which drafted tokens are accepted.

Legend: B rows, V vocabulary, K drafted tokens. Every row draws from its own generator, so that an answer does not
depend on who shares its batch. Logits pass a grammar's mask, then biases and penalties (in vLLM's order), then
temperature, top-k, top-p and min-p (in transformers' order).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from catena.adapters.core.work import Sampling


@dataclass(slots=True, kw_only=True)
class Draw:
    """How one row draws; `counts` are of its own tokens so far, kept when a penalty asks for them.

    `prompt` is what the repetition penalty counts beside them.
    """

    temperature: float
    top_p: float
    rng: random.Random
    presence: float = 0.0
    frequency: float = 0.0
    top: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition: float = 1.0
    bias: Sequence[tuple[int, float]] = ()
    prompt: Sequence[int] = ()
    counts: dict[int, int] = field(default_factory=dict)
    _seen_V: Tensor | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether tokens already written become less likely."""
        return self.presence != 0.0 or self.frequency != 0.0 or self.repetition != 1.0

    @property
    def shifts(self) -> bool:
        """Whether logits change before this draw, so that the likeliest token may be another."""
        written = self.penalised and bool(self.counts)
        return written or bool(self.bias) or (self.repetition != 1.0 and bool(self.prompt))

    def seen(self, like_V: Tensor) -> Tensor:
        """Which tokens are in the prompt or the answer so far, (V,) of bool, on the device of `like_V`."""
        if self._seen_V is None:
            self._seen_V = torch.zeros_like(like_V, dtype=torch.bool)
            self._seen_V[torch.tensor(self.prompt, dtype=torch.long, device=like_V.device)] = True
        self._seen_V[torch.tensor(list(self.counts), dtype=torch.long, device=like_V.device)] = True
        return self._seen_V


def draw_of(sampling: Sampling, default_temperature: float, stream: str, prompt: Sequence[int] = ()) -> Draw:
    """The draw that a request asks for; `stream` names the answer among those of one seed."""
    given = sampling.temperature
    return Draw(
        temperature=default_temperature if given is None else given,
        top_p=sampling.top_p,
        rng=random.Random(f"{sampling.seed}:{stream}"),
        presence=sampling.presence_penalty,
        frequency=sampling.frequency_penalty,
        top=sampling.top if sampling.logprobs else 0,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition=sampling.repetition_penalty,
        bias=sampling.logit_bias,
        prompt=prompt,
    )


def penalise(logits_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Logits with each row's biases and penalties.

    Repetition divides what is above 0 and multiplies what is below, of tokens in prompt or answer (CTRL, arXiv
    1909.05858, section 4.1); OpenAI's presence counts once and frequency each time, of the answer's tokens alone.
    """
    if not any(draw.shifts for draw in draws):
        return logits_BV
    logits_BV = logits_BV.clone()
    for row, draw in enumerate(draws):
        if draw.shifts:
            _shift(logits_BV[row], draw)
    return logits_BV


def _shift(logits_V: Tensor, draw: Draw) -> None:
    device, dtype = logits_V.device, logits_V.dtype
    if draw.bias:
        tokens, biases = zip(*draw.bias, strict=True)
        logits_V[torch.tensor(tokens, device=device)] += torch.tensor(biases, device=device, dtype=dtype)
    if draw.repetition != 1.0:
        repeated_V = torch.where(logits_V > 0, logits_V / draw.repetition, logits_V * draw.repetition)
        logits_V.copy_(torch.where(draw.seen(logits_V), repeated_V, logits_V))
    if draw.counts and (draw.presence != 0.0 or draw.frequency != 0.0):
        counts = torch.tensor(list(draw.counts.values()), device=device, dtype=dtype)
        logits_V[torch.tensor(list(draw.counts), device=device)] -= draw.presence + draw.frequency * counts


def probabilities(logits_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """What each row draws from, (B, V), summing to 1: temperature, top-k, nucleus, min-p. Greedy rows: one token."""
    heat_B1 = torch.tensor([[draw.temperature or 1.0] for draw in draws], device=logits_BV.device)
    logits_BV = logits_BV.float()
    if any(draw.greedy for draw in draws):
        cold_B1 = torch.tensor([[draw.greedy] for draw in draws], device=logits_BV.device)
        best_B1 = logits_BV.argmax(-1, keepdim=True)
        only_BV = torch.full_like(logits_BV, -torch.inf).scatter_(1, best_B1, 0.0)
        logits_BV = torch.where(cold_B1, only_BV, logits_BV)
    probs_BV = torch.softmax(_top_k(logits_BV / heat_B1, draws), -1)
    return _min_p(_top_p(probs_BV, draws), draws)


def _top_k(logits_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Without what is below each row's k-th logit; equals of the k-th stay, as transformers has it."""
    size = logits_BV.shape[1]
    counts = [min(draw.top_k or size, size) for draw in draws]
    most = max((count for count in counts if count < size), default=0)
    if not most:
        return logits_BV
    best_BK = logits_BV.topk(most).values
    places_B1 = torch.tensor([[min(count, most) - 1] for count in counts], device=logits_BV.device)
    all_B1 = torch.tensor([[count == size] for count in counts], device=logits_BV.device)
    return logits_BV.masked_fill((logits_BV < best_BK.gather(1, places_B1)) & ~all_B1, -torch.inf)


def _min_p(probs_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Without what is below a share of the likeliest token's probability (arXiv 2407.01082)."""
    if all(draw.min_p <= 0.0 for draw in draws):
        return probs_BV
    share_B1 = torch.tensor([[draw.min_p] for draw in draws], device=probs_BV.device)
    kept_BV = probs_BV.masked_fill(probs_BV < share_B1 * probs_BV.amax(-1, keepdim=True), 0.0)
    return kept_BV / kept_BV.sum(-1, keepdim=True)


def _top_p(probs_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The nucleus (arXiv 1904.09751)."""
    if all(draw.top_p >= 1.0 for draw in draws):
        return probs_BV
    share_B1 = torch.tensor([[draw.top_p] for draw in draws], device=probs_BV.device)
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


def certain(proposal: Sequence[int], like_KV: Tensor) -> list[Tensor]:
    """The distributions of a draft that is always sure of itself."""
    drafted = []
    for token in proposal:
        one_V = torch.zeros_like(like_KV[0])
        one_V[token] = 1.0
        drafted.append(one_V)
    return drafted


def agree(proposal: Sequence[int], best: Sequence[int]) -> tuple[int, int]:
    """`accept` for greedy rows: the longest common start, and the target's own token after it."""
    for place, token in enumerate(proposal):
        if token != best[place]:
            return place, best[place]
    return len(proposal), best[len(proposal)]
