"""OpenAI's JSON for chat, completions, embeddings and errors, to and from Catena's messages.

Shapes follow the OpenAI API reference; unknown fields of a request are ignored, wrong types refused,
and so is what is known to alter the answer elsewhere (`unserved`).
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from catena.api.types.v1 import types_pb2
from catena.gateway.handlers.unserved import Unserved, check_served
from catena.kit.errors import CatenaError, Conflict, Denied, Exhausted, Invalid, Missing
from catena.kit.wire import http_status

Json = dict[str, Any]
MOST_TOKEN = 2**32 - 1
MOST_LENGTH = 2**31 - 1
MOST_PROMPTS = 128


Texts = str | list[str | int | list[int]]
"""A text or texts. Tokens, which OpenAI takes too, are known in order to be refused: they are some model's own."""


class StreamOptions(msgspec.Struct, frozen=True):
    """`stream_options`."""

    include_usage: bool = False


class JsonSchema(msgspec.Struct, frozen=True):
    """`response_format.json_schema`."""

    name: str = ""
    schema: Json | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """`response_format`: `text`, `json_object` or `json_schema`."""

    type: str
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`structured_outputs`, vLLM's extra field: one of a JSON schema, a regular expression and choices."""

    json: Json | str | None = None
    regex: str | None = None
    choice: list[str] | None = None


class Function(msgspec.Struct, frozen=True):
    """A function of a tool or tool call."""

    name: str
    description: str = ""
    parameters: Json | None = None
    arguments: str = ""


class Tool(msgspec.Struct, frozen=True):
    """A tool that is offered."""

    function: Function
    type: str = "function"


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call within the history."""

    function: Function
    id: str = ""
    type: str = "function"


class Named(msgspec.Struct, frozen=True):
    """A function's name."""

    name: str


class ToolChoice(msgspec.Struct, frozen=True):
    """`tool_choice` that names a function."""

    function: Named
    type: str = "function"


class ImageUrl(msgspec.Struct, frozen=True):
    """Where an image is."""

    url: str
    detail: str = ""


class Part(msgspec.Struct, frozen=True):
    """A part of a message."""

    type: str
    text: str = ""
    image_url: ImageUrl | None = None


class Message(msgspec.Struct, frozen=True):
    """A turn of the conversation."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Sampled(Unserved, frozen=True, kw_only=True):
    """What chat and completions have in common; `top_k` to `structured_outputs` are vLLM's additions to OpenAI."""

    model: str
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    response_format: ResponseFormat | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None


class ChatBody(Sampled, frozen=True, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: list[Message]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(Sampled, frozen=True, kw_only=True):
    """The body of /v1/completions. `echo`, `best_of` and `suffix` are known in order to be refused."""

    prompt: Texts
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /v1/embeddings; `truncate`, beyond OpenAI's: a local encoder cuts what is too long for it."""

    input: Texts
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    truncate: bool = False


def chat_request(body: ChatBody) -> types_pb2.ChatRequest:
    """What is asked, for the executor. Raises Invalid, naming the parameter."""
    if not body.messages:
        raise Invalid("`messages` is empty; give at least one message", code="missing_messages")
    sampling = sampling_of(body)
    sampling.logprobs = bool(body.logprobs)
    sampling.top_logprobs = within("top_logprobs", body.top_logprobs or 0, 0, 20)
    request = types_pb2.ChatRequest(messages=[message_of(message) for message in body.messages], sampling=sampling)
    for tool in body.tools or []:
        offered = request.tools.add(name=tool.function.name, description=tool.function.description)
        if tool.function.parameters is not None:
            offered.parameters.update(tool.function.parameters)
    request.tool_choice = tool_choice_of(body.tool_choice)
    request.one_call = body.parallel_tool_calls is False
    constrain(request, body)
    return request


def completion_requests(body: CompletionBody) -> list[types_pb2.ChatRequest]:
    """What is asked, for the executor, a request a prompt. Raises Invalid, also for what is not served."""
    prompts = texts_of("prompt", body.prompt)
    if not prompts or not all(prompts):
        raise Invalid("`prompt` is empty; give the text to continue", code="missing_prompt")
    if len(prompts) > MOST_PROMPTS:
        raise Invalid(f"{len(prompts)} prompts > {MOST_PROMPTS}; send them in several requests", code="bad_parameter")
    if body.echo or body.suffix:
        raise Invalid("`echo` and `suffix` are not served; put the texts together yourself", code="bad_parameter")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise Invalid("`best_of` is not served; ask for `n` answers and choose yourself", code="bad_parameter")
    sampling = sampling_of(body)
    sampling.logprobs = body.logprobs is not None
    sampling.top_logprobs = within("logprobs", body.logprobs or 0, 0, 20)
    requests = [types_pb2.ChatRequest(prompt=prompt, sampling=sampling) for prompt in prompts]
    for request in requests:
        constrain(request, body)
    return requests


def texts_of(name: str, given: Texts) -> list[str]:
    """The texts. Raises Invalid (`tokens_not_served`)."""
    several = [given] if isinstance(given, str) else given
    texts = [text for text in several if isinstance(text, str)]
    if len(texts) < len(several):
        raise Invalid(
            f"`{name}` holds numbers of tokens, whose meaning differs between models; send texts "
            "(langchain's OpenAIEmbeddings: check_embedding_ctx_length=False)",
            code="tokens_not_served",
        )
    return texts


def constrain(request: types_pb2.ChatRequest, body: Sampled) -> None:
    """Say what the answer must look like. Raises Invalid (`bad_response_format`, `bad_structured_outputs`)."""
    schema = schema_of(body.response_format)
    asked = body.structured_outputs
    if asked is not None:
        given = [name for name in ("json", "regex", "choice") if getattr(asked, name) not in (None, "", [])]
        if len(given) != 1 or schema is not None:
            raise Invalid(
                f"`structured_outputs` has {', '.join(given) or 'nothing'}; give one of json, regex and choice, and no "
                "`response_format` beside it",
                code="bad_structured_outputs",
            )
        request.regex = asked.regex or ""
        request.choices.extend(asked.choice or ())
        if isinstance(asked.json, str):
            request.json_schema_text = asked.json
        schema = asked.json if isinstance(asked.json, dict) else None
    if schema is not None:
        request.json_schema_text = msgspec.json.encode(schema).decode()


def sampling_of(body: Sampled) -> types_pb2.Sampling:
    """How tokens are drawn. Raises Invalid for values out of OpenAI's ranges, and for what is not served."""
    check_served(body)
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return types_pb2.Sampling(
        max_tokens=0 if most is None else within("max_tokens", most, 1, MOST_LENGTH),
        temperature=None if body.temperature is None else within("temperature", body.temperature, 0.0, 2.0),
        top_p=None if body.top_p is None else within("top_p", body.top_p, 0.0, 1.0),
        seed=None if body.seed is None else within("seed", body.seed, -(2**63), 2**63 - 1),
        stop=stop,
        n=within("n", 1 if body.n is None else body.n, 1, 16),
        presence_penalty=_penalty("presence_penalty", body.presence_penalty),
        frequency_penalty=_penalty("frequency_penalty", body.frequency_penalty),
        # vLLM writes -1 for all tokens.
        top_k=max(0, within("top_k", body.top_k or 0, -1, 1 << 20)),
        min_p=None if body.min_p is None else within("min_p", body.min_p, 0.0, 1.0),
        repetition_penalty=_repetition(body.repetition_penalty),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=within("min_tokens", body.min_tokens or 0, 0, most or MOST_LENGTH),
        logit_bias={token: within(f"logit_bias[{token}]", b, -100, 100) for token, b in _biases(body.logit_bias)},
    )


def _penalty(name: str, value: float | None) -> float | None:
    return None if value is None else within(name, value, -2.0, 2.0)


def _repetition(value: float | None) -> float | None:
    if value is not None and not 0.0 < value < math.inf:
        raise Invalid(f"`repetition_penalty` {value} is not above 0; use 1 for none", code="bad_parameter")
    return value


def _biases(given: dict[int, float] | None) -> Iterable[tuple[int, float]]:
    for token, bias in (given or {}).items():
        yield within("logit_bias token", token, 0, MOST_TOKEN), bias


def within(name: str, value: Any, low: Any, high: Any) -> Any:
    """`value`, if it lies within the range. Raises Invalid (`bad_parameter`), also for NaN."""
    if not low <= value <= high:
        raise Invalid(f"`{name}` {value} is outside {low} to {high}", code="bad_parameter")
    return value


def message_of(message: Message) -> types_pb2.ChatMessage:
    """One turn. Raises Invalid (`bad_role`, `bad_content`)."""
    role = "system" if message.role == "developer" else message.role
    if role not in ("system", "user", "assistant", "tool"):
        raise Invalid(f"unknown role {message.role!r}; use system, user, assistant or tool", code="bad_role")
    turn = types_pb2.ChatMessage(role=role, name=message.name or "", tool_call_id=message.tool_call_id or "")
    parts = [Part("text", message.content)] if isinstance(message.content, str) else message.content or []
    for part in parts:
        if part.type == "text":
            turn.content += part.text
        elif part.type == "image_url" and part.image_url is not None:
            turn.images.add(url=part.image_url.url, detail=part.image_url.detail)
        else:
            raise Invalid(f"unknown content part {part.type!r}; use text or image_url", code="bad_content")
    for index, call in enumerate(message.tool_calls or []):
        turn.tool_calls.add(id=call.id, name=call.function.name, arguments=call.function.arguments, index=index)
    return turn


def tool_choice_of(choice: str | ToolChoice | None) -> str:
    """`auto`, `none`, `required`, or the named function."""
    return choice.function.name if isinstance(choice, ToolChoice) else choice or ""


def schema_of(wanted: ResponseFormat | None) -> Json | None:
    """The JSON schema that the answer must satisfy, or None. Raises Invalid (`bad_response_format`)."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.type == "json_schema" and wanted.json_schema is not None and wanted.json_schema.schema is not None:
        return wanted.json_schema.schema
    raise Invalid(
        f"response_format {wanted.type!r} lacks a schema or is unknown; use text, json_object or json_schema",
        code="bad_response_format",
    )


def usage_json(usage: types_pb2.Usage) -> Json:
    """`usage` as OpenAI writes it."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def logprobs_json(tokens: "list[types_pb2.TokenLogprob]") -> Json | None:
    """`logprobs` of a chat choice, or None."""
    if not tokens:
        return None

    def one(token: types_pb2.TokenLogprob) -> Json:
        return {"token": token.token, "logprob": token.logprob, "bytes": list(token.token.encode())}

    content = [{**one(token), "top_logprobs": [one(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def calls_json(calls: "list[types_pb2.ToolCall]", *, streaming: bool) -> list[Json]:
    """Tool calls; a stream's pieces carry their index."""
    told = []
    for call in calls:
        function = {"name": call.name, "arguments": call.arguments}
        one: Json = {"id": call.id, "type": "function", "function": function}
        if streaming:
            one = {"index": call.index, **{k: v for k, v in one.items() if k != "id" or v}}
            one["function"] = {k: v for k, v in function.items() if v or k == "arguments"}
        told.append(one)
    return told


def answer_id(execution_id: str, *, chat: bool) -> str:
    """An answer's `id`, by which feedback finds its execution."""
    return f"{'chatcmpl' if chat else 'cmpl'}-{execution_id}"


def choice_json(choice: types_pb2.Choice, *, chat: bool) -> Json:
    """One answer of a response that is not streamed."""
    ends: Json = {"index": choice.index, "finish_reason": choice.finish_reason or "stop"}
    if not chat:
        return {**ends, "text": choice.message.content, "logprobs": completion_logprobs(list(choice.logprobs))}
    calls = calls_json(list(choice.message.tool_calls), streaming=False)
    content: str | None = choice.message.content
    message: Json = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
    if calls:
        message["tool_calls"] = calls
    return {**ends, "message": message, "logprobs": logprobs_json(list(choice.logprobs))}


def completion_logprobs(tokens: "list[types_pb2.TokenLogprob]") -> Json | None:
    """`logprobs` of a completion choice, or None."""
    if not tokens:
        return None
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{other.token: other.logprob for other in token.top} for token in tokens],
        "text_offset": offsets,
    }


BAD_KEY = "invalid_api_key"
ERROR_TYPES: dict[type[CatenaError], str] = {
    Invalid: "invalid_request_error",
    Missing: "invalid_request_error",
    Conflict: "invalid_request_error",
    Denied: "permission_error",
    Exhausted: "rate_limit_error",
}


def error_json(error: CatenaError, param: str | None = None) -> Json:
    """An OpenAI-shaped error."""
    kind = next((name for cls, name in ERROR_TYPES.items() if isinstance(error, cls)), "server_error")
    kind = "authentication_error" if error.code == BAD_KEY else kind
    return {"error": {"message": error.message, "type": kind, "param": param, "code": error.code}}


def error_status(error: CatenaError) -> int:
    """The HTTP status; OpenAI answers 401, not 403, to a bad key, and 413 to a body too large."""
    special = {BAD_KEY: 401, "body_too_large": 413, "method_not_allowed": 405}
    return special.get(error.code, http_status(error))
