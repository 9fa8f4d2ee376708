"""What the executor needs of the world outside it, as small Protocols; drivers and tests' fakes fulfil them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from catena.executor.core.catalogue import Model
from catena.executor.core.chat import NOBODY, NOTHING_USED, ChatRequest, Choice, Context, Delta, Score, Usage
from catena.executor.core.events import Record
from catena.executor.core.figures import PipelineFigures
from catena.executor.core.steps import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A call as a provider gets it. `draft_model` empty: no speculation. `timeout_s`: what is left at the start.

    `drafted`: a draft of the answer, for providers that can tell how far it is what the model would have written.
    `context` is who asks, for figures and for those who learn from habits.
    """

    model: Model
    request: ChatRequest
    timeout_s: float
    draft_model: str = ""
    draft_tokens: int = 0
    drafted: str = ""
    context: Context = NOBODY


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a generation ended. `usage` None: the provider did not say. `confidence`: least token probability.

    `remark` says why another than the named model answered; empty: the named one did. `load_ms`: it waited for a local
    model to be loaded.
    """

    usage: Usage | None = None
    resolved_model: str = ""
    confidence: float | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    draft_usage: Usage = NOTHING_USED
    remark: str = ""
    load_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Part of an answer as it comes; the last one, and only it, carries `ended`.

    `thinking`: the model is at work on what is no part of the answer.
    """

    deltas: tuple[Delta, ...] = ()
    ended: Ended | None = None
    thinking: bool = False


class Provider(Protocol):
    """Where models answer. A stream that stops without `ended` was cut; the caller treats it as a failure."""

    def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Answer piece by piece; closing the iterator ends the work. Raises the error kinds of kit."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """One vector a text, and the tokens read; None: nobody counted them."""

    vectors: Sequence[Sequence[float]]
    usage: Usage | None


class Embedding(Protocol):
    """Where texts become vectors."""

    async def embed(self, model: Model, texts: Sequence[str], timeout_s: float, *, truncate: bool = False) -> Vectors:
        """A vector for each text, in order; `truncate`: texts that are too long are cut where else they are refused."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model made of each input, as JSON data, and the tokens read; None: nobody counted them."""

    values: Sequence[Any]
    usage: Usage | None


class Predictor(Protocol):
    """Where texts are labelled, spans of them found, or feature vectors read."""

    async def predict(
        self, model: Model, inputs: Sequence[Any], parameters: Mapping[str, Any], timeout_s: float
    ) -> Prediction:
        """A value for each input, in order.

        An input is a text, `{text, text_pair}`, or for models of feature vectors a list or a mapping of numbers.
        """
        ...


class Catalogue(Protocol):
    """The models as known now; reading costs nothing, changes show at once."""

    @property
    def models(self) -> Mapping[str, Model]:
        """By name, adapters left out."""
        ...

    async def put(self, model: Model) -> Model:
        """Store an entry under its name."""
        ...

    async def listed(self) -> Sequence[Model]:
        """All entries by name, with calls so far, and the adapters served now."""
        ...


class Memory(Protocol):
    """Where strategies and pipelines look things up."""

    async def search(self, collection: str, query: str, n_results: int) -> Sequence[Mapping[str, str]]:
        """Hits, best first, each with `text`, `title`, `file`, `name`."""
        ...


class Features(Protocol):
    """What is true of an entity now."""

    async def read(self, entity_type: str, entity_id: str, group: str, features: Sequence[str]) -> Mapping[str, Any]:
        """`values` by name and, where all are numbers, `vector`. `group` empty: the `features` named."""
        ...


class Verifier(Protocol):
    """Judges an answer; registered by name, which becomes the score's source."""

    def __call__(self, request: ChatRequest, choices: Sequence[Choice]) -> Score | None:
        """A score in 0 to 1, or None when it has nothing to say."""
        ...


class Journal(Protocol):
    """What a durable run remembers of its finished calls; a live run forgets."""

    async def recall(self, key: str) -> bytes | None:
        """What was noted under `key` before a crash."""
        ...

    async def note(self, key: str, value: bytes) -> None:
        """Remember; once this returns, the call is never made again."""
        ...


class Cache(Protocol):
    """Recent results, least recently used first out."""

    def get(self, key: str) -> Any:
        """The value, or None when there is none or it has expired."""
        ...

    def put(self, key: str, value: Any, models: Sequence[str]) -> None:
        """Keep a value that came from `models`."""
        ...


class Templates(Protocol):
    """Where users' templates run, apart from everything else."""

    async def names(self, source: str) -> frozenset[str]:
        """The values that a template needs. Raises Invalid (`bad_template`) where it is none."""
        ...

    async def render(self, source: str, scope: Mapping[str, Any]) -> str:
        """The template's text. Raises Invalid with the code of what went wrong, Late, Unavailable."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelved:
    """Where a question stands among those like it.

    Questions of one `shelf` differ in their last words alone; of two that may share an answer the `anchors` are equal.
    """

    shelf: str
    anchors: str
    vector: Sequence[float]


class SemanticCache(Protocol):
    """Recent results by the meaning of their questions."""

    def near(self, question: Shelved) -> tuple[Any, float] | None:
        """The value of the likest question that is like enough, and how like it is."""
        ...

    def put(self, question: Shelved, value: Any, models: Sequence[str]) -> None:
        """Keep a value that came from `models`."""
        ...


class Pipelines(Protocol):
    """Users' pipelines, by tenant and name, in versions."""

    async def put(self, tenant: str, pipeline: Pipeline) -> Pipeline:
        """Store as the next version, which is returned."""
        ...

    async def get(self, tenant: str, name: str, version: int = 0) -> Pipeline | None:
        """The tenant's own, else the shared one; version 0 is the newest."""
        ...

    async def listed(self, tenant: str, size: int, after: str) -> Sequence[Pipeline]:
        """The newest version of each by name, those that come after the name `after`, shared ones included."""
        ...

    async def delete(self, tenant: str, name: str) -> bool:
        """Remove all versions; False when there was none."""
        ...


class Records(Protocol):
    """Where executions are written down."""

    def add(self, record: Record) -> None:
        """Take a record; it is committed, with its event, a moment later."""
        ...


class Archive(Protocol):
    """Where executions are read again."""

    async def get(self, tenant: str, execution_id: str) -> Record | None:
        """The record with every score so far."""
        ...

    async def figures(self, tenant: str, name: str) -> Sequence[PipelineFigures]:
        """The tenant's figures by pipeline or shape; `name` empty: all."""
        ...


class NoJournal:
    """The journal of a live run."""

    async def recall(self, key: str) -> bytes | None:
        """Nothing was noted."""
        return None

    async def note(self, key: str, value: bytes) -> None:
        """Forget."""
