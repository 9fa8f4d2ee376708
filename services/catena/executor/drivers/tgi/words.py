"""`/generate` and `/generate_stream` (huggingface.github.io/text-generation-inference): bodies, and what comes back."""

import math
from typing import Any

import msgspec

from catena.executor.core.chat import ChatRequest, Delta, TokenLogprob, Usage
from catena.executor.core.ports import Ask
from catena.executor.drivers.http.wanting import refuse

FINISHES = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


def generate_body(ask: Ask) -> dict[str, Any]:
    """The body for a raw prompt. TGI knows no temperature of 0: it is greedy unless told to sample.

    Raises Invalid (`sampling_unsupported`).
    """
    request, sampling = ask.request, ask.request.sampling
    refuse(
        ask,
        n=sampling.n > 1,
        logit_bias=bool(sampling.logit_bias),
        ignore_eos=sampling.ignore_eos,
        min_tokens=sampling.min_tokens > 0,
        min_p=sampling.min_p is not None,
    )
    samples = bool(sampling.temperature)
    told: dict[str, Any] = {
        "details": True,
        "return_full_text": False,
        "do_sample": samples,
        "max_new_tokens": sampling.max_tokens or None,
        "temperature": sampling.temperature or None,
        "top_p": sampling.top_p if sampling.top_p is not None and 0 < sampling.top_p < 1 else None,
        "top_k": sampling.top_k or None,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "top_n_tokens": sampling.top_logprobs or None if sampling.logprobs else None,
        "grammar": grammar_of(request),
    }
    parameters = {name: value for name, value in told.items() if value is not None}
    return {"inputs": request.prompt, "parameters": parameters}


def grammar_of(request: ChatRequest) -> dict[str, Any] | None:
    """What the answer must look like, in TGI's words; None: free text. One of several choices is a regex to it."""
    if request.json_schema is not None:
        return {"type": "json", "value": dict(request.json_schema)}
    if request.choices:
        return {"type": "regex", "value": "|".join(f"({_literal(choice)})" for choice in request.choices)}
    return {"type": "regex", "value": request.regex} if request.regex else None


def _literal(text: str) -> str:
    """The regex of `text` itself; only what is special is escaped, as grammars' dialects differ in the rest."""
    return "".join(f"\\{sign}" if sign in r".^$*+?{}[]\|()" else sign for sign in text)


def response_format(request: ChatRequest) -> dict[str, Any]:
    """The same for TGI's chat route."""
    grammar = grammar_of(request)
    return {"response_format": grammar} if grammar else {}


class Token(msgspec.Struct):
    """A generated token; a `special` one is no text."""

    text: str = ""
    logprob: float | None = None
    special: bool = False


class Details(msgspec.Struct):
    """How the answer ended; only newer servers tell `input_length` in a stream."""

    finish_reason: str = ""
    generated_tokens: int | None = None
    input_length: int | None = None


class Said(msgspec.Struct):
    """An event of the stream; the last one has `generated_text` and, as asked for, `details`.

    An answer of `/generate`, which comes whole, has these two alone.
    """

    token: Token | None = None
    top_tokens: list[Token] = []
    generated_text: str | None = None
    details: Details | None = None
    error: str | None = None
    error_type: str = ""


DECODER = msgspec.json.Decoder(Said)


def delta_of(said: Said, *, logprobs: bool) -> Delta:
    """What an event adds."""
    token = said.token or Token(text=said.generated_text or "")
    text = "" if token.special else token.text
    reason = said.details.finish_reason if said.details and said.generated_text is not None else ""
    measured = logprobs and token.logprob is not None and not token.special
    return Delta(
        text=text,
        logprobs=(_measured(token, said.top_tokens),) if measured else (),
        finish_reason=FINISHES.get(reason, "stop") if reason else "",
    )


def usage_of(details: Details) -> Usage | None:
    """Verbatim; None: not told in full."""
    if details.generated_tokens is None or details.input_length is None:
        return None
    return Usage(input_tokens=details.input_length, output_tokens=details.generated_tokens)


def least_probability(logprobs: list[float]) -> float | None:
    """Probability of the least likely token; None without any."""
    return math.exp(min(0.0, *logprobs)) if logprobs else None


def _measured(token: Token, others: list[Token]) -> TokenLogprob:
    top = tuple(TokenLogprob(token=one.text, logprob=one.logprob or 0.0) for one in others)
    return TokenLogprob(token=token.text, logprob=token.logprob or 0.0, top=top)
