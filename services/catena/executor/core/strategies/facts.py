"""What a strategy may know besides plan and request: plain functions over the catalogue as it stands."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`may_draft(draft, target)`: lossless speculation is possible. `logprobs(model)`: must be asked for confidence."""

    may_draft: Callable[[str, str], bool]
    logprobs: Callable[[str], bool]
    collection: str = ""
