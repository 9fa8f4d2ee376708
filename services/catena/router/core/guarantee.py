"""From which confidence on a cascade's first answer may stand, so that little is lost against the strong model.

Requests on which both models answered, whatever the gate, are held out for it. A threshold is certified when the loss
being above its limit would make what was seen too unlikely: Learn then Test (Angelopoulos et al., arXiv 2110.01052),
fixed sequence from the strictest threshold down, with the exact binomial tail. The promise holds for requests like
those; where the later half of them loses significantly more than the earlier, only the later half counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from catena.kit.errors import Invalid
from catena.plan.model import Plan, Role
from catena.router.core.confidence import Array
from catena.router.core.evidence import Evidence

_DRIFT = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """At most `max_loss` of the answers are wrong that the strong model would have got right, with that probability."""

    max_loss: float
    probability: float


def check_promise(max_loss: float, certainty: float) -> Promise | None:
    """The promise; None for a loss of 0. Raises Invalid when one of the two is no share."""
    if not 0.0 <= max_loss < 1.0:
        raise Invalid(f"router.max_loss is {max_loss}; set a share below 1, or 0 for no promise", code="bad_promise")
    if not 0.0 < certainty < 1.0:
        raise Invalid(f"router.certainty is {certainty}; set a probability between 0 and 1", code="bad_promise")
    return Promise(max_loss=max_loss, probability=certainty) if max_loss > 0.0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The lowest threshold that is certified, the requests that it rests on, and the loss seen on them."""

    threshold: float
    requests: int
    loss: float


def paired(plan: Plan, evidence: Evidence) -> tuple[Array, Array]:
    """Confidence of the first answer, and whether keeping it would lose what the main model knows; oldest first."""
    nothing = np.empty(0)
    fast, main = evidence.column(plan.of(Role.FAST)[0].model), evidence.column(plan.main_model)
    if fast is None or main is None:
        return nothing, nothing
    told = evidence.whole & ~np.isnan(evidence.confidence[:, fast])
    told &= ~np.isnan(evidence.right[:, fast]) & ~np.isnan(evidence.right[:, main])
    lost = (evidence.right[told, main] > evidence.right[told, fast]).astype(np.float64)
    return evidence.confidence[told, fast], lost


def certify(confidences: Array, lost: Array, levels: Sequence[float], promise: Promise) -> Certificate | None:
    """The lowest of the `levels` that can be promised; None when not even keeping next to nothing can."""
    confidences, lost = lately(confidences, lost)
    found: Certificate | None = None
    for level in sorted({*levels}, reverse=True):
        losses = int(lost[confidences >= level].sum())
        if not len(lost) or binomial_tail(losses, len(lost), promise.max_loss) > 1.0 - promise.probability:
            break
        found = Certificate(threshold=level, requests=len(lost), loss=losses / len(lost))
    return found


def lately(confidences: Array, lost: Array) -> tuple[Array, Array]:
    """All requests, or only the later half where it loses significantly more than the earlier one."""
    half = len(lost) // 2
    before, after = lost[:half], lost[half:]
    if half < 20:
        return confidences, lost
    pooled = float(lost.mean())
    deviation = math.sqrt(max(pooled * (1.0 - pooled), 1e-9) * (1.0 / len(before) + 1.0 / len(after)))
    z = (float(after.mean()) - float(before.mean())) / deviation
    if 0.5 * math.erfc(z / math.sqrt(2.0)) < _DRIFT:
        return confidences[half:], after
    return confidences, lost


def binomial_tail(losses: int, count: int, share: float) -> float:
    """Probability of so few losses, or fewer, of `count` when each has the probability `share`."""
    if losses >= count:
        return 1.0
    if not 0.0 < share < 1.0:
        return float(share <= 0.0)
    log_p, log_q = math.log(share), math.log1p(-share)
    choose = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(losses + 1)]
    return min(1.0, sum(math.exp(c + k * log_p + (count - k) * log_q) for k, c in enumerate(choose)))
