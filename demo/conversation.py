"""Turn a conversation into token ids so that no text can pass for a special token.

`train_models.py` and the tests use it; it is also the reference for how a server must encode, see
`demo/models/README.md`.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Render the chat template around markers, then encode its pieces and the texts apart.

    Special tokens are parsed only in what the template itself wrote. Works with any tokenizer
    whose template places each content unchanged or stripped.
    """
    nonce = secrets.token_hex(8)
    marked = [{**m, "content": f"{nonce}:{i};"} for i, m in enumerate(messages)]
    rendered = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=add_generation_prompt)
    ids: list[int] = []
    rest = str(rendered)
    for marker, message in zip((m["content"] for m in marked), messages, strict=True):
        before, found, rest = rest.partition(marker)
        if not found:
            raise ValueError(f"the chat template drops message {message!r}; send it another way")
        ids += _ids(tokenizer, before, special=True)
        ids += _ids(tokenizer, message["content"], special=False)
    return ids + _ids(tokenizer, rest, special=True)


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]
    return list(ids)
