"""llama.cpp through the package `xllamacpp`, in a process of its own: what a GGUF file really answers.

llama.cpp ends its process when a file displeases it, so it gets one to end. Attention, keys and values run in float32
here, since the weights are what is being measured. Run as a module, this is that process.
"""

import http.client
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from catena.kit.errors import Invalid, Missing, Unavailable

PACKAGE = "xllamacpp"
REPLY_S = 600.0
SPEED_RUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What comes after some tokens: ids from the likeliest on, and their log-probabilities."""

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]


class LlamaCpp:
    """A model that llama.cpp has loaded."""

    def __init__(self, address: str) -> None:
        """Ask the process at `address`."""
        self._where = urlsplit(address)
        self._letter = int(self._post("/tokenize", {"content": "a"})["tokens"][-1])

    def tokens(self, text: str) -> list[int]:
        """The text's tokens, special ones among them, framed as the model wants it."""
        told = self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return [int(number) for number in told["tokens"]]

    def guess(self, tokens: Sequence[int], top: int) -> Guess:
        """The `top` likeliest tokens after these."""
        asked = {"prompt": list(tokens), "n_predict": 1, "n_probs": top, "cache_prompt": True}
        # An end, or half a character, would come without its probabilities; they are told from before this bias.
        asked |= {"temperature": 0, "logit_bias": [[self._letter, 1e4]]}
        rows = self._post("/completion", asked)["completion_probabilities"][0]["top_logprobs"]
        return Guess(
            ids=np.array([row["id"] for row in rows]),
            logprobs=np.array([row["logprob"] for row in rows], np.float64),
        )

    def tokens_per_s(self, tokens: Sequence[int], count: int) -> float:
        """How fast `count` tokens are written after these by llama.cpp's own clock; the median of a few runs."""
        asked = {"prompt": list(tokens), "n_predict": count, "temperature": 0, "ignore_eos": True}
        runs = [self._post("/completion", asked)["timings"]["predicted_per_second"] for _ in range(SPEED_RUNS)]
        return float(np.median(runs))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        connection = http.client.HTTPConnection(self._where.hostname or "", self._where.port, timeout=REPLY_S)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            raw = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"llama.cpp ended while it was asked: {error}; its process may lack memory") from error
        finally:
            connection.close()
        if reply.status != http.client.OK:
            raise Invalid(f"llama.cpp answers {reply.status} to {path}: {raw[:300]!r}", code="bad_gguf")
        return json.loads(raw)


@contextmanager
def open_llama(
    model: Path, *, adapter: Path | None = None, context: int = 1024, threads: int = 1
) -> Iterator[LlamaCpp]:
    """Load a GGUF file, with an adapter if given; the process ends with the block.

    One thread unless told otherwise: llama.cpp's spin while they wait, so that on a busy machine more are far slower.

    Raises Missing (`no_llama_cpp`) without the package, Invalid (`bad_gguf`) when llama.cpp cannot load the file.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        message = f"measuring needs llama.cpp; `pip install {PACKAGE}`, or leave the loss unmeasured"
        raise Missing(message, code="no_llama_cpp")
    given = [str(model), str(adapter or ""), str(context), str(threads)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = process.stdout.readline().decode().strip()
            if not address:
                process.wait()
                said.seek(0)
                lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
                why = next((line for line in lines if "error" in line.lower()), (lines or ["no word"])[-1])
                raise Invalid(f"llama.cpp cannot load {model.name}: {why.strip()[:300]}", code="bad_gguf")
            yield LlamaCpp(address)
        finally:
            process.stdin.close()
            process.kill()
            process.wait()
            process.stdout.close()


def main() -> None:
    """Serve one model until the other end of standard input is closed."""
    import xllamacpp

    model, adapter, context, threads = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = int(context), 1, False, 0
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
