"""An encoder of transformers: its own classes read the folder, compute, and turn logits into labels and spans."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from catena.adapters.core.encoding import Encoding, Found, Label, Span
from catena.adapters.core.work import BaseFacts
from catena.adapters.drivers.engine.encoders.passages import Passage
from catena.adapters.drivers.engine.encoders.pooling import Pooling
from catena.adapters.drivers.engine.families import unsupported
from catena.kit.config import ModelType
from catena.kit.errors import Invalid

AUTO: Mapping[ModelType, str] = {
    "embedding": "AutoModel",
    "classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
PIPELINES: Mapping[ModelType, str] = {
    "classification": "TextClassificationPipeline",
    "token-classification": "TokenClassificationPipeline",
}
DERIVED = ("position_ids", "inv_freq")
"""Ends of the names of tensors that older files hold although the model computes them."""
ENDLESS = 1 << 20
"""Tokenizers say a number beyond all reason where they know no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a folder holds: model, tokenizer, and, for labels and spans, the pipeline that makes them of logits."""

    kind: ModelType
    model: Any
    tokenizer: Any
    pipeline: Any


class Transformer:
    """Implements `Encoder`."""

    def __init__(self, loaded: Loaded, *, pooling: Pooling | None, most_tokens: int) -> None:
        """Cap the context at `most_tokens` unless it is 0; `pooling` is that of an embedding model."""
        self._loaded = loaded
        self._pooling = pooling
        caps = [_positions(loaded.model), int(loaded.tokenizer.model_max_length), most_tokens]
        caps += [pooling.most_tokens] if pooling is not None else []
        context = min((cap for cap in caps if 0 < cap < ENDLESS), default=ENDLESS)
        weights = [*loaded.model.parameters(), *loaded.model.buffers()]
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights)
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        self.facts = BaseFacts(bytes=size, context_tokens=context, dtype=dtype)
        takes = signature(loaded.model.forward).parameters
        self._inputs = [name for name in loaded.tokenizer.model_input_names if name in takes]
        self._settings = {"use_cache": False} if "use_cache" in takes else {}
        self._found: Mapping[ModelType, Callable[[Any, Tensor, Sequence[Passage]], list[Found]]] = {
            "embedding": self._vectors,
            "classification": self._labels,
            "token-classification": self._spans,
        }

    def read(self, asked: Encoding) -> list[Passage]:
        """The texts as tokens. Raises Invalid (`context_length_exceeded`)."""
        texts = [self._pooling.text(text) if self._pooling is not None else text for text in asked.texts]
        told = self._tokens(texts, asked.pairs)
        most = self.facts.context_tokens
        long = [place for place, ids in enumerate(told["input_ids"]) if len(ids) > most]
        if long and not asked.truncate:
            raise Invalid(
                f"text {long[0]} has {len(told['input_ids'][long[0]])} tokens, {asked.base} takes {most}; shorten it "
                "or ask for it to be cut (truncate)",
                code="context_length_exceeded",
            )
        if long:
            told = self._tokens(texts, asked.pairs, truncation=True, max_length=most)
        return [
            Passage(
                tokens=len(ids),
                inputs={name: told[name][place] for name in self._inputs if name in told},
                text=texts[place],
                offsets=told["offset_mapping"][place],
                special=told["special_tokens_mask"][place],
                aggregation=asked.aggregation,
                cut=place in long,
            )
            for place, ids in enumerate(told["input_ids"])
        ]

    def run(self, passages: Sequence[Passage]) -> list[Found]:
        """What the model finds, in one pass."""
        loaded = self._loaded
        padded = loaded.tokenizer.pad([dict(passage.inputs) for passage in passages], return_tensors="pt")
        inputs = padded.to(loaded.model.device)
        with torch.inference_mode():
            out = loaded.model(**inputs, **self._settings)
            return self._found[loaded.kind](out, inputs["attention_mask"], passages)

    def _tokens(self, texts: Sequence[str], pairs: Sequence[str], **cut: Any) -> Any:
        return self._loaded.tokenizer(
            list(texts),
            list(pairs) or None,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=True,
            verbose=False,
            **cut,
        )

    def _vectors(self, out: Any, mask_BT: Tensor, passages: Sequence[Passage]) -> list[Found]:
        assert self._pooling is not None
        vectors_BD = self._pooling(out.last_hidden_state, mask_BT).cpu().numpy().astype("<f4")
        return [Found(vector=vector_D.tobytes()) for vector_D in vectors_BD]

    def _labels(self, out: Any, mask_BT: Tensor, passages: Sequence[Passage]) -> list[Found]:
        logits_BL = out.logits.cpu()
        told = [
            self._loaded.pipeline.postprocess({"logits": logits_BL[row : row + 1]}, top_k=None, _legacy=False)
            for row in range(len(passages))
        ]
        return [Found(labels=tuple(Label(one["label"], one["score"]) for one in labels)) for labels in told]

    def _spans(self, out: Any, mask_BT: Tensor, passages: Sequence[Passage]) -> list[Found]:
        return [
            self._spans_of(logits_TL[mask_T.bool()], passage)
            for logits_TL, mask_T, passage in zip(out.logits.cpu(), mask_BT.cpu(), passages, strict=True)
        ]

    def _spans_of(self, logits_TL: Tensor, passage: Passage) -> Found:
        """Spans of one text, whose tokens, padding left out, are those of `logits_TL`."""
        pipeline = self._loaded.pipeline
        inputs = {
            "logits": logits_TL.unsqueeze(0),
            "sentence": passage.text,
            "input_ids": np.asarray([passage.inputs["input_ids"]]),
            "offset_mapping": np.asarray([passage.offsets]),
            "special_tokens_mask": torch.tensor([list(passage.special)]),
        }
        told = pipeline.postprocess([inputs], aggregation_strategy=_strategy(passage.aggregation))
        return Found(
            spans=tuple(
                Span(one.get("entity_group") or one["entity"], float(one["score"]), int(one["start"]), int(one["end"]))
                for one in told
            )
        )


def prepare() -> None:
    """Import what reading an encoder takes, which is seconds of work."""
    import transformers

    for name in ("AutoTokenizer", *AUTO.values(), *PIPELINES.values()):
        getattr(transformers, name)


def read_transformer(folder: Path, kind: ModelType, *, dtype: torch.dtype, device: torch.device) -> Loaded:
    """A folder that passed the gate, by transformers' own classes; every tensor has to have its place.

    Raises Invalid (`unsupported_architecture`, `unsupported_tokenizer`, `base_incomplete`).
    """
    # Imported when needed: it takes seconds, which an engine of decoders alone need not spend.
    import transformers

    if not (folder / "tokenizer.json").exists():
        raise Invalid(f"{folder.name} has no tokenizer.json; save its fast tokenizer", code="unsupported_tokenizer")
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **own)
        auto = getattr(transformers, AUTO[kind])
        model, told = auto.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **own)
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise unsupported(f"transformers cannot read {folder.name} as {AUTO[kind]}: {str(error)[:300]}") from error
    _check_tensors(folder.name, kind, told)
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        lacks = "fast tokenizer" if not tokenizer.is_fast else "padding token"
        raise Invalid(f"{folder.name} has no {lacks}; save one with it", code="unsupported_tokenizer")
    # Positions are counted from the left, whatever side a decoder's tokenizer was told to pad.
    tokenizer.padding_side = "right"
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model = model.to(device).eval()
    pipeline = None
    if kind in PIPELINES:
        pipeline = getattr(transformers, PIPELINES[kind])(model=model, tokenizer=tokenizer, device=device)
    return Loaded(kind=kind, model=model, tokenizer=tokenizer, pipeline=pipeline)


def _check_tensors(name: str, kind: ModelType, told: Mapping[str, Any]) -> None:
    missing, odd = sorted(told["missing_keys"]), sorted(told["unexpected_keys"])
    if kind == "embedding":
        # Vectors are pooled from the tokens'; what would make one of the first token alone is not asked.
        missing = [key for key in missing if not key.startswith("pooler.")]
    odd = [key for key in odd if not key.endswith(DERIVED)]
    if missing:
        raise Invalid(f"{name} lacks tensor {missing[0]!r}; save it again with transformers", code="base_incomplete")
    if odd:
        raise unsupported(f"{name}: tensor {odd[0]!r} and {len(odd) - 1} more have no place in this architecture")


def _positions(model: Any) -> int:
    """The most tokens that the model has positions for; 0: it does not say."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # Where padding has a position of its own, as RoBERTa has it, texts begin after that.
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - before
    return int(getattr(model.config, "max_position_embeddings", 0) or 0)


def _strategy(name: str) -> Any:
    from transformers.pipelines.token_classification import AggregationStrategy

    return AggregationStrategy[name.upper()]
