"""What an embedding model's folder holds, and the proof that it is whole: written by export, read by the embedder."""

import hashlib
from pathlib import Path

import msgspec

from catena.kit.errors import Invalid, Missing

MODEL, TOKENIZER, CARD = "model.onnx", "tokenizer.json", "config.json"


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`config.json`: `digest` is SHA-256 over model and tokenizer; `max_tokens` is where a text is cut off."""

    name: str
    dimension: int
    max_tokens: int
    digest: str


def digest_of(folder: Path) -> str:
    """SHA-256, as hex, over the bytes of model and tokenizer in that order."""
    total = hashlib.sha256()
    for name in (MODEL, TOKENIZER):
        total.update((folder / name).read_bytes())
    return total.hexdigest()


def write_card(folder: Path, *, name: str, dimension: int, max_tokens: int) -> ModelCard:
    """Seal a folder whose model and tokenizer are in place."""
    card = ModelCard(name=name, dimension=dimension, max_tokens=max_tokens, digest=digest_of(folder))
    (folder / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(card)))
    return card


def read_card(folder: Path) -> ModelCard:
    """The card of a folder that is whole.

    Raises Missing when a file is absent, Invalid when the card is malformed or the bytes differ from its digest.
    """
    cure = f"`python -m catena.embed.export --out {folder}`, or name another folder as `embedding`"
    for name in (CARD, MODEL, TOKENIZER):
        if not (folder / name).is_file():
            raise Missing(f"no embedding model in {folder}: no {name}; make it with {cure}", code="no_embedding_model")
    try:
        card = msgspec.json.decode((folder / CARD).read_bytes(), type=ModelCard)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Invalid(f"{folder / CARD}: {error}; make it anew with {cure}", code="bad_embedding_model") from error
    found = digest_of(folder)
    if found != card.digest:
        raise Invalid(
            f"{folder} holds digest {found[:12]}, its card says {card.digest[:12]}; make it anew with {cure}",
            code="bad_embedding_model",
        )
    return card
