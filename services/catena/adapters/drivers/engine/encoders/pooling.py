"""How the vectors of a text's tokens become one, as sentence-transformers' files say; the mean where there are none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from catena.adapters.drivers.engine.families import unsupported
from catena.artifacts.files import STAGE

# In the order in which they are joined.
SWITCHES: Mapping[str, str] = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


class _Stage(msgspec.Struct):
    path: str
    type: str


class _Sentence(msgspec.Struct):
    max_seq_length: int | None = None
    do_lower_case: bool = False


class _Prompts(msgspec.Struct):
    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """`modes` joined end to end; `most_tokens` 0: as the model takes; `prompt` goes before every text."""

    modes: tuple[str, ...] = ("mean",)
    normalised: bool = False
    most_tokens: int = 0
    lower: bool = False
    prompt: str = ""

    def text(self, text: str) -> str:
        """The text as the model is to read it."""
        return self.prompt + (text.lower() if self.lower else text)

    def __call__(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """One vector a text, in float32; (B, T, D) to (B, modes D)."""
        hidden_BTD, mask_BT1 = hidden_BTD.float(), mask_BT.unsqueeze(-1)
        vectors = torch.cat([_pooled(mode, hidden_BTD, mask_BT1) for mode in self.modes], -1)
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalised else vectors


def read_pooling(folder: Path) -> Pooling:
    """What the folder's files say. Raises Invalid (`unsupported_architecture`) for a stage that is not known here."""
    if not (folder / "modules.json").exists():
        return Pooling()
    stages = msgspec.json.decode((folder / "modules.json").read_bytes(), type=list[_Stage])
    kinds = [stage.type.rpartition(".")[2] for stage in stages]
    known = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
    if kinds not in known or stages[0].path or not STAGE.match(stages[1].path):
        raise unsupported(f"{folder.name} makes its vectors by {', '.join(kinds)}, not Transformer, Pooling, Normalize")
    sentence = _read(folder / "sentence_bert_config.json", _Sentence)
    told = _read(folder / "config_sentence_transformers.json", _Prompts)
    pooling: dict[str, Any] = _read(folder / stages[1].path / "config.json", dict[str, Any])
    prompt = (told.prompts or {}).get(told.default_prompt_name or "", "")
    if prompt and pooling.get("include_prompt") is False:
        raise unsupported(f"{folder.name} leaves its prompt out of its vectors")
    return Pooling(
        modes=_modes(pooling, folder.name),
        normalised="Normalize" in kinds,
        most_tokens=sentence.max_seq_length or 0,
        lower=sentence.do_lower_case,
        prompt=prompt,
    )


def _modes(pooling: Mapping[str, Any], name: str) -> tuple[str, ...]:
    given = pooling.get("pooling_mode")
    chosen = given if isinstance(given, list) else [given] if given else []
    # Before version 6 each mode had a switch of its own.
    chosen = chosen or [mode for mode, key in SWITCHES.items() if pooling.get(key)]
    odd = [mode for mode in chosen if mode not in SWITCHES]
    if odd or not chosen:
        raise unsupported(f"{name} pools by {odd or 'nothing'}; known: {', '.join(SWITCHES)}")
    return tuple(chosen)


def _read(path: Path, kind: Any) -> Any:
    return msgspec.json.decode(path.read_bytes() if path.exists() else b"{}", type=kind)


def _pooled(mode: str, hidden_BTD: Tensor, mask_BT1: Tensor) -> Tensor:
    count_B1 = mask_BT1.sum(1)
    rows = torch.arange(len(hidden_BTD), device=hidden_BTD.device)
    match mode:
        case "cls":
            # The first token that is none of the padding, on whichever side that is.
            return hidden_BTD[rows, mask_BT1.squeeze(-1).int().argmax(1)]
        case "lasttoken":
            last_B = mask_BT1.shape[1] - 1 - mask_BT1.squeeze(-1).flip(1).int().argmax(1)
            return hidden_BTD[rows, last_B]
        case "max":
            return hidden_BTD.masked_fill(mask_BT1 == 0, -torch.inf).amax(1)
        case "weightedmean":
            weight_BT1 = mask_BT1.cumsum(1) * mask_BT1
            return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
    total_BD = (hidden_BTD * mask_BT1).sum(1)
    return total_BD / (count_B1.sqrt() if mode == "mean_sqrt_len_tokens" else count_B1)
