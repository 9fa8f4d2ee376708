"""litellm as a client; prints what came of it."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

url, key = sys.argv[1:]
common = {"model": "openai/far", "api_base": f"{url}/v1", "api_key": key, "num_retries": 0}
ask = {**common, "messages": [{"role": "user", "content": "hello"}]}
parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("a", "b")]
answer = litellm.completion(**ask)
called = litellm.completion(**ask, tools=tools).choices[0]
chunks = list(litellm.completion(**ask, stream=True, stream_options={"include_usage": True}))
embedded = litellm.embedding(model="openai/far-embed", input=["a", "four"], api_base=f"{url}/v1", api_key=key)
told = {
    "answer": answer.choices[0].message.content,
    "usage": answer.usage.total_tokens,
    "called": [[call.function.name, call.function.arguments] for call in called.message.tool_calls],
    "reason": called.finish_reason,
    "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
    "vectors": [row["embedding"] for row in embedded.data],
}
try:
    litellm.completion(**{**ask, "model": "openai/nowhere"})
except litellm.NotFoundError as error:
    told["missing"] = error.status_code
try:
    litellm.completion(**{**ask, "api_key": "ck-wrong"})
except litellm.AuthenticationError as error:
    told["denied"] = error.status_code
print(json.dumps(told))  # noqa: T201
