"""llama.cpp's server with adapters, for `servers.py`: `python -m benchmarks.adapters.llama_server ...`.

Arguments: a port, threads, slots, tokens a slot, the model's GGUF file, and the adapters' in order of their numbers.
"""

import signal
import sys

import xllamacpp


def main() -> None:
    """Serve until told to stop. Weights as the file has them, keys and values in llama.cpp's own default, F16."""
    port, threads, slots, tokens, model, *adapters = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.model.path = model
    params.n_parallel = int(slots)
    params.n_ctx = int(slots) * int(tokens)
    params.n_gpu_layers = 0
    params.cache_prompt = False
    params.verbosity = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    # None of them acts unless a request asks for it.
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in adapters]
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
