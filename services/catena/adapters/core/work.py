"""What the engine is asked and what it answers: plain data, the same in the room and in the engine's process."""

import msgspec

from catena.kit.config import ModelType


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that a model asked to have called: `arguments` is JSON text, as it was written."""

    id: str
    name: str
    arguments: str


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that a model may ask for. `parameters` is the JSON schema of its arguments, empty: it takes none."""

    name: str
    description: str = ""
    parameters: str = ""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn: `role` as the chat template knows it, its text, and the tools that it asks for.

    Of the role `tool`, `answers` is the id of the call whose result this is.
    """

    role: str
    content: str
    calls: tuple[Call, ...] = ()
    answers: str = ""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn. `max_tokens` 0: as many as the context leaves; `temperature` None: the model's default.

    `seed` None: the engine draws one. `top` is how many alternatives come with each token's log-probability.
    `top_k` 0: all tokens. `logit_bias`: token numbers with what is added to their logits. With `ignore_eos` the tokens
    that end a text do not; before `min_tokens` they are not drawn, and no stop text counts.
    """

    max_tokens: int = 0
    temperature: float | None = None
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: bool = False
    top: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer must look like; one of the three is set. `json_schema` is JSON text, its properties in order."""

    json_schema: str = ""
    regex: str = ""
    choices: tuple[str, ...] = ()


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """A base by name and what is added to it: the key under which the engine holds the adapter; empty: nothing."""

    base: str
    adapter: str = ""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One generation. Either `messages` or `prompt`, raw text, is set. `draft` proposes `draft_tokens` at a time.

    `constraint` None: free text. `tools` are told to the model; with `one_call` an answer ends with the first call.
    `salt` keeps what was read apart: keys and values are shared among works of the same salt only.
    """

    weights: Weights
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    prompt: str = ""
    sampling: Sampling = Sampling()
    draft: Weights | None = None
    draft_tokens: int = 5
    constraint: Constraint | None = None
    one_call: bool = False
    salt: str = ""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token's text, its natural log-probability, and the likeliest alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """Text to append to answer `index` of `n`; `finish` is `stop` or `length` with its last piece, else empty.

    `calls` are whole, the first of them being the answer's call number `first_call`; where there were any, the answer
    ends with `tool_calls`.
    """

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str = ""
    calls: tuple[Call, ...] = ()
    first_call: int = 0


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """How a generation ended: tokens counted, the first answer's confidence, and what the draft did.

    It waited `queue_ms` for its place in the batch. `cached_tokens` of the input were known already.
    """

    input_tokens: int
    output_tokens: int
    min_probability: float
    mean_logprob: float
    first_token_ms: float
    queue_ms: float = 0.0
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_input_tokens: int = 0
    draft_output_tokens: int = 0


class Module(msgspec.Struct, frozen=True, array_like=True):
    """One adapted linear layer as the gate found it: its path, and what B A x is multiplied by.

    A is (rank, inputs), B is (outputs, rank), DoRA's magnitudes are (outputs,); `a_at`, `b_at` and `magnitude_at`, -1:
    none, are the bytes of the file of weights at which their values begin.
    """

    path: str
    rank: int
    scale: float
    inputs: int
    outputs: int
    a_at: int
    b_at: int
    magnitude_at: int


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One checked adapter folder, its share in a composition, and the tokens that activate it, none: it always acts.

    `digest` is BLAKE3 of the bytes of its file of weights, `dtype` the type of all of its values: F32, F16 or BF16.
    """

    folder: str
    digest: str
    dtype: str
    modules: tuple[Module, ...]
    dora: bool = False
    invocation: tuple[int, ...] = ()
    weight: float = 1.0


class AdapterSource(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter, or a weighted composition of several, for the engine to hold under `weights.adapter`."""

    weights: Weights
    parts: tuple[Part, ...]


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that is on the device now: its exact bytes, and the seconds that each phase of its load took."""

    bytes: int
    read_s: float = 0.0
    copy_s: float = 0.0
    probe_s: float = 0.0


class BaseSource(msgspec.Struct, frozen=True, kw_only=True):
    """A checked base folder for the engine to hold under `name`; `context_tokens` caps its context, 0: as it has."""

    name: str
    folder: str
    context_tokens: int = 0
    kind: ModelType = "chat"


class BaseFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A resident base: bytes of its weights on the device, most tokens of prompt and answer, type of its weights."""

    bytes: int
    context_tokens: int
    dtype: str


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine did since it started. `waiting` and `running` are answers, now.

    `active_adapters` is how many adapters the running answers use, `active_ranks` the sum of their highest ranks.

    Of `prefix_looked` prompt tokens `prefix_hits` were known; `prefix_bytes` of keys and values are kept, now.
    """

    forwards: int = 0
    tokens: int = 0
    prefix_looked: int = 0
    prefix_hits: int = 0
    prefix_bytes: int = 0
    waiting: int = 0
    running: int = 0
    active_adapters: int = 0
    active_ranks: int = 0
