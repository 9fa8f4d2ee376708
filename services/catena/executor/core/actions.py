"""The language between a strategy and whoever runs it.

A strategy is a generator: it yields what it wants done, receives what came of it, and returns its decision. It does
no I/O, so the same strategy runs live, resumes from a journal, and is tested by sending it results.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catena.executor.core.chat import ChatRequest, Choice, Delta, Message, Score
from catena.kit.errors import CatenaError
from catena.plan.model import Stage

Sift = Callable[[Sequence[Delta]], Sequence[Delta]]
"""Sees the pieces of an answer as they come and gives those that the client may have by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a call: an answer, or an `error`. `confidence`: least token probability, None if unmeasured.

    `spliced`: another model finished what the first had begun.
    """

    choices: tuple[Choice, ...] = ()
    model: str = ""
    confidence: float | None = None
    streamed: bool = False
    error: CatenaError | None = None
    spliced: bool = False

    @property
    def text(self) -> str:
        """The first answer's words."""
        return self.choices[0].text if self.choices else ""

    @property
    def finish_reason(self) -> str:
        """How the first answer ended; empty: there is none."""
        return self.choices[0].finish_reason if self.choices else ""

    def must(self) -> "Result":
        """This result. Raises the error where there is one."""
        if self.error is not None:
            raise self.error
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Ask a model. `stream`: its words go to the client as they come. `draft`: speculate losslessly with that stage.

    `drafted`: a draft of the answer, of which the model keeps what it would have written itself.
    `sift` makes what picks out of the pieces those that go to the client; None: all. `purse_usd`: the most that the
    call may cost, where it shares the budget with others; None: whatever is left.
    """

    stage: Stage
    request: ChatRequest
    stream: bool = False
    sift: Callable[[], Sift] | None = None
    purse_usd: float | None = None
    draft: Stage | None = None
    draft_tokens: int = 0
    drafted: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Ask several at once. After each answer `enough` sees the results (None: under way) and may end the rest."""

    calls: tuple[Call, ...]
    enough: Callable[[Sequence[Result | None]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """Search memory; the reply is the found pieces as written texts, best first."""

    query: str
    collection: str
    n_results: int
    result_format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """Run the `prompt` of a stage over `scope` and who asks; the reply is its text."""

    stage: Stage
    scope: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """Make vectors of texts; the reply has one a text, or is None where there is no embedding model to be had."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Judge a stage that has ended: its `outcome` (`accepted`, `rejected`), why, and the confidence in it.

    `form`: what its answer came to when answers were compared; empty: its words as they are.
    """

    name: str
    outcome: str
    reason: str = ""
    confidence: float = 0.0
    form: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer of a strategy. `streamed`: the client has it already. `agreement`: share that gave this answer."""

    choices: tuple[Choice, ...]
    model: str
    streamed: bool = False
    agreement: float | None = None
    lossy: bool = False
    queries: tuple[str, ...] = ()
    trace: str = ""
    scores: tuple[Score, ...] = ()


Action = Call | Together | Lookup | Fill | Embed | Mark
Strategy = Generator[Action, Any, Decision]


def decided(result: Result, *, agreement: float | None = None, lossy: bool = False) -> Decision:
    """The decision for one result as it stands. Raises its error where there is one."""
    result.must()
    return Decision(
        choices=result.choices,
        model=result.model,
        streamed=result.streamed,
        agreement=agreement,
        lossy=lossy or result.spliced,
    )


def answer_of(text: str, like: Result) -> tuple[Choice, ...]:
    """`text` as the whole answer, finished as `like` was."""
    return (Choice(message=Message(role="assistant", content=text), finish_reason=like.finish_reason or "stop"),)
