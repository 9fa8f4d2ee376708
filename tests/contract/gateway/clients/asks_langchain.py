"""langchain-openai as its users write it; prints what came of it."""

import json
import sys

import pydantic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

url, key = sys.argv[1:]


@tool
def weather(city: str) -> str:
    """Tell the weather."""
    return f"fine in {city}"


class Place(pydantic.BaseModel):
    """A place."""

    city: str
    people: int


chat = ChatOpenAI(model="far", base_url=f"{url}/v1", api_key=key, max_retries=0)
answer = chat.invoke("hello")
called = chat.bind_tools([weather]).invoke("hello")
turns = [HumanMessage("hello"), called, *[weather.invoke(call) for call in called.tool_calls]]
chunks = list(ChatOpenAI(model="far", base_url=f"{url}/v1", api_key=key, stream_usage=True).stream("hello"))
embeddings = OpenAIEmbeddings(model="far-embed", base_url=f"{url}/v1", api_key=key, check_embedding_ctx_length=False)
told = {
    "answer": answer.content,
    "usage": answer.usage_metadata["total_tokens"],
    "called": [[call["name"], call["args"]] for call in called.tool_calls],
    "after": chat.bind_tools([weather]).invoke(turns).content,
    "streamed": "".join(chunk.content for chunk in chunks),
    "streamed usage": [chunk.usage_metadata["total_tokens"] for chunk in chunks if chunk.usage_metadata],
    "schema": chat.with_structured_output(Place, method="json_schema").invoke("where?").model_dump(),
    "function": chat.with_structured_output(Place, method="function_calling").invoke("where?").model_dump(),
    "vectors": embeddings.embed_documents(["a", "four"]),
}
print(json.dumps(told))  # noqa: T201
