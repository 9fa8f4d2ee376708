"""The demo bases' tokenizer: 256 bytes and six special tokens, so that no text is unknown."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, BOS, END, SYSTEM, USER, BOT = range(256, 262)
SPECIAL_TOKENS = ("<pad>", "<bos>", "<end>", "<system>", "<user>", "<bot>")
VOCABULARY = 256 + len(SPECIAL_TOKENS)
ROLES = {"system": SYSTEM, "user": USER, "assistant": BOT}

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] in ('system', 'developer') -%}
{{- '<system>' + message['content'] + '<end>' -}}
{%- elif message['role'] in ('user', 'tool') -%}
{{- '<user>' + message['content'] + '<end>' -}}
{%- elif message['role'] == 'assistant' -%}
{{- '<bot>' -}}
{%- generation -%}{{- message['content'] + '<end>' -}}{%- endgeneration -%}
{%- else -%}
{{- raise_exception('unknown role ' + message['role'] + '; use system, user or assistant') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<bot>' -}}{%- endif -%}
"""


def build(max_length: int) -> PreTrainedTokenizerFast:
    """Build the tokenizer; token id = byte value, then the special tokens in order."""
    vocabulary = {_letter(byte): byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<end>",
        additional_special_tokens=["<system>", "<user>", "<bot>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _letter(byte: int) -> str:
    """Show a byte as the character that stands for it in byte-level vocabularies (GPT-2's rule).

    Printable Latin-1 stands for itself, the 68 others in order for U+0100 and on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in shown:
        return chr(byte)
    return chr(0x100 + sum(other not in shown for other in range(byte)))
