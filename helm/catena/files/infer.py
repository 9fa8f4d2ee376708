"""What `helm test` runs: one question through the gateway, and an answer with tokens, or a failure that says why.

Arguments: the gateway's URL, a model, a prompt, and for how many seconds to go on trying. The API key is in
CATENA_API_KEY. Standard library only, because it runs in the gateway's image.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request


def ask(url: str, model: str, prompt: str, timeout_s: float) -> str:
    """The answer's text. Raises ValueError when it is none, OSError when the gateway does not answer."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 16}
    headers = {"Authorization": f"Bearer {os.getenv('CATENA_API_KEY', '')}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        answer = json.load(response)
    text = answer["choices"][0]["message"]["content"]
    if not text or not answer["usage"]["completion_tokens"]:
        raise ValueError(f"an answer without text or tokens: {answer}")
    return str(text)


def main() -> int:
    """Try until an answer comes or the time is up; a refusal (4xx) ends it at once."""
    url, model, prompt, seconds = sys.argv[1:]
    deadline = time.monotonic() + float(seconds)
    while True:
        try:
            text = ask(url, model, prompt, max(1.0, deadline - time.monotonic()))
        except urllib.error.HTTPError as error:
            told = f"{error} {error.read().decode(errors='replace')}"
            if error.code < 500 and error.code != 429:
                sys.stderr.write(f"refused: {told}\n")
                return 1
        except (OSError, ValueError, KeyError) as error:
            told = str(error)
        else:
            sys.stdout.write(f"{model} answered {text!r}\n")
            return 0
        if time.monotonic() > deadline:
            sys.stderr.write(f"no answer within {seconds} s; last: {told}\n")
            return 1
        time.sleep(2)


if __name__ == "__main__":
    sys.exit(main())
