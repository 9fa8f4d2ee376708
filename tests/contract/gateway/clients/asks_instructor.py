"""instructor as its users write it; prints what came of it."""

import json
import sys

import instructor
import openai
import pydantic

url, key = sys.argv[1:]


class Place(pydantic.BaseModel):
    """A place."""

    city: str
    people: int


told = {}
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0), mode=mode)
    asked = {"model": "far", "messages": [{"role": "user", "content": "where?"}], "response_model": Place}
    told[mode.value] = client.chat.completions.create(**asked).model_dump()
print(json.dumps(told))  # noqa: T201
