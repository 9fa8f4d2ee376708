"""What a strategy may know besides plan and request: plain functions over the catalogue as it stands."""

from collections.abc import Callable
from dataclasses import dataclass

from catena.executor.core.chat import ChatRequest
from catena.plan.model import Stage


def _anybody(model: str, request: ChatRequest) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`may_draft(draft, target)`: lossless speculation is possible. `logprobs(model)`: must be asked for confidence.

    `verifies(model)`: its server tells how likely each token of a prompt is, so that a draft can be verified exactly.
    `able(model, request)`: nothing says that the model cannot take the images or tools of the request.
    """

    may_draft: Callable[[str, str], bool]
    logprobs: Callable[[str], bool]
    verifies: Callable[[str], bool] = lambda model: False
    able: Callable[[str, ChatRequest], bool] = _anybody
    collection: str = ""

    def ables(self, stages: tuple[Stage, ...], request: ChatRequest) -> tuple[Stage, ...]:
        """Those of the stages whose models can take the request."""
        return tuple(stage for stage in stages if self.able(stage.model, request))
