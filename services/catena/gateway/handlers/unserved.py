"""Parameters of OpenAI and vLLM that would alter the answer and are not served: refused by name, not ignored."""

import msgspec

from catena.kit.errors import Invalid

STRUCTURED = "use `structured_outputs` with"
CURES = {
    "guided_json": f"{STRUCTURED} `json`",
    "guided_regex": f"{STRUCTURED} `regex`",
    "guided_choice": f"{STRUCTURED} `choice`",
    "guided_grammar": f"{STRUCTURED} `json`, `regex` or `choice`",
    "stop_token_ids": "give the texts in `stop`",
    "bad_words": "forbid tokens by `logit_bias` -100",
    "allowed_token_ids": "favour tokens by `logit_bias`",
    "prompt_logprobs": "`logprobs` tells those of the answer",
    "include_stop_str_in_output": "append the text of `stop` yourself",
    "use_beam_search": "ask for `n` answers and choose yourself",
    "truncate_prompt_tokens": "shorten the prompt yourself",
    "chat_template": "write the whole text as a completion's `prompt`",
    "functions": "offer them as `tools`",
    "function_call": "use `tool_choice`",
    "web_search_options": "use the strategy `search`",
    "audio": "ask for text",
    "modalities": "ask for text",
    "continue_final_message": "write the whole text as a completion's `prompt`",
}


class Unserved(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that are known in order to be refused. Each one's default asks for nothing, as null does."""

    guided_json: object = None
    guided_regex: object = None
    guided_choice: object = None
    guided_grammar: object = None
    stop_token_ids: object = []
    bad_words: object = []
    allowed_token_ids: object = None
    prompt_logprobs: object = None
    include_stop_str_in_output: object = False
    use_beam_search: object = False
    truncate_prompt_tokens: object = None
    chat_template: object = None
    continue_final_message: object = False
    functions: object = []
    function_call: object = None
    web_search_options: object = None
    audio: object = None
    modalities: object = msgspec.field(default_factory=lambda: ["text"])


NOTHING = Unserved()


def check_served(body: Unserved) -> None:
    """Raise Invalid (`bad_parameter`) that names the first field that asks for what is not served, and the cure."""
    for name, cure in CURES.items():
        if getattr(body, name) not in (None, getattr(NOTHING, name)):
            raise Invalid(f"`{name}` is not served; {cure}", code="bad_parameter")
