"""What answered a request and what it used: for the key that pays and for the dashboard."""

from collections.abc import Sequence
from dataclasses import dataclass

from catena.api.executor.v1 import executor_pb2
from catena.api.types.v1 import types_pb2
from catena.gateway.core.choice import PIPELINE
from catena.gateway.core.hour import Ended, Outcome


@dataclass(slots=True, kw_only=True)
class Bill:
    """What answered a request and what it used; empty until it is known.

    `owed`: the execution that may have cost something all the same.
    """

    model: str = ""
    shape: str = ""
    tokens: int = 0
    cost_usd: float = 0.0
    baseline_usd: float = 0.0
    known: bool = False
    owed: str = ""

    def put(self, other: "Bill") -> None:
        """Take over what `other` says."""
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))
        self.known = True

    def owe(self, other: "Bill") -> None:
        """Take over what `other` says was used; nothing answered."""
        self.tokens, self.cost_usd, self.baseline_usd = other.tokens, other.cost_usd, other.baseline_usd

    def ended(self, at_s: float, *, agent_type: str, outcome: Outcome, duration_ms: float) -> Ended:
        """For the figures."""
        return Ended(
            at_s=at_s,
            model=self.model,
            shape=self.shape,
            agent_type=agent_type,
            outcome=outcome,
            duration_ms=duration_ms,
            cost_usd=self.cost_usd,
            baseline_usd=self.baseline_usd,
            tokens=self.tokens,
        )


def predicted(model_id: str, done: Sequence[executor_pb2.PredictResponse]) -> Bill:
    """The bill of predictions. What another model would have taken is unknown, so nothing is said to be saved."""
    tokens = sum(one.usage.input_tokens + one.usage.output_tokens for one in done)
    cost_usd = sum(one.cost_usd for one in done)
    shape = model_id if model_id.startswith(PIPELINE) else "sequential"
    return Bill(model=model_id, shape=shape, tokens=tokens, cost_usd=cost_usd, baseline_usd=cost_usd)


def main_usage(finished: executor_pb2.Finished | executor_pb2.Execution) -> types_pb2.Usage:
    """The tokens of the one call that a single model would have needed: those of the last accepted stage."""
    for stage in reversed(finished.stages):
        if stage.outcome == "accepted":
            return stage.usage
    return finished.usage


def answering(done: executor_pb2.Finished | executor_pb2.Execution, model: str) -> str:
    """The name to count `model` under: an adapter by the version that answered, which several names may mean."""
    if "@" in model:
        for stage in reversed(done.stages):
            if stage.model == model and stage.resolved_model:
                return stage.resolved_model.partition("#")[0]
    return model.partition("#")[0]
