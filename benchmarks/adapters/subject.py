"""The random models and requests that all of this runs on; transformers and PEFT make them, all sides read them."""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.progress import Progress
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from catena.adapters.core.work import AdapterSource, BaseSource, Part, Weights
from catena.adapters.drivers.gate import part_of
from catena.artifacts import manifest
from catena.artifacts.base import CheckedBase, check_base
from catena.artifacts.files import WEIGHTS
from catena.artifacts.gate import check_adapter
from catena.artifacts.signature import make_key, sign

NAME = "bench"
RANK = 16
CONTEXT = 8192
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4},
    "220m": {"hidden_size": 1024, "intermediate_size": 3328, "num_hidden_layers": 12, "num_attention_heads": 16},
    "0.5b": {"hidden_size": 1536, "intermediate_size": 4864, "num_hidden_layers": 14, "num_attention_heads": 16},
}
VOCABULARY = {"tiny": 2000, "220m": 32_000, "0.5b": 32_000}
HEADS_PER_KEY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """How every side computes: in which type of numbers, by torch's name, and with how many threads."""

    dtype: str
    threads: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type itself."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A base and its signed adapters by name, each of `RANK` on all projections; `trusted` holds the key's public half.

    `parameters` are all of the base's, `read_parameters` those that a step reads whole, so without the embedding;
    `adapter_parameters` are those of one adapter.
    """

    size: str
    base: Path
    checked: CheckedBase
    adapters: dict[str, Path]
    trusted: Path
    parameters: int
    read_parameters: int
    adapter_parameters: int

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return VOCABULARY[self.size]

    def prompts(self, count: int, lengths: Sequence[int], seed: int = 1) -> list[list[int]]:
        """Random prompts of these lengths, over and over."""
        chance = random.Random(seed)
        return [
            [chance.randrange(5, self.vocabulary) for _ in range(lengths[number % len(lengths)])]
            for number in range(count)
        ]

    def bound(self, distinct: int) -> float:
        """Most that is left of the base's pace where a step's time is that of reading its weights once."""
        return 1 / (1 + distinct * self.adapter_parameters / self.read_parameters)

    def base_source(self) -> BaseSource:
        """The base as the engine's process takes it."""
        return BaseSource(name=NAME, folder=str(self.base))

    def source(self, name: str, key: str = "") -> AdapterSource:
        """An adapter as the engine's process takes it, to be held under `key`, else under its name."""
        return AdapterSource(weights=Weights(base=NAME, adapter=key or name), parts=(self.part(name),))

    def part(self, name: str) -> Part:
        """An adapter as the gate describes it to the engine."""
        return part_of(
            check_adapter(
                self.adapters[name],
                base_digest=self.checked.digest,
                shape=self.checked.shape,
                keys={"bench": self.trusted},
            )
        )


def texts(count: int, length: int, chance: random.Random) -> list[str]:
    """Random texts of `length` tokens: one a letter."""
    return ["".join(chance.choices(string.ascii_letters, k=length)) for _ in range(count)]


def make(folder: Path, size: str, adapters: int, dtype: torch.dtype, progress: Progress) -> tuple[Subject, Any]:
    """Make a Llama of `size` in `folder` with LoRA adapters on all of its projections; it, and the same in PEFT."""
    torch.manual_seed(0)
    sizes = SIZES[size]
    config = LlamaConfig(
        **sizes,
        vocab_size=VOCABULARY[size],
        num_key_value_heads=sizes["num_attention_heads"] // HEADS_PER_KEY,
        max_position_embeddings=CONTEXT,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    parameters = model.num_parameters()
    base = folder / "base"
    model.save_pretrained(base)
    _tokenizer(VOCABULARY[size]).save_pretrained(base)
    names = [f"a{number}" for number in range(adapters)]
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    peft: Any = get_peft_model(model, lora, adapter_name=names[0])
    for name in names[1:]:
        peft.add_adapter(name, lora)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    peft.save_pretrained(folder / "adapters")
    checked, pair = check_base(base), make_key(folder / "keys")
    folders = {name: folder / "adapters" / name for name in names}
    task = progress.add_task(f"{size}: signing adapters", total=adapters)
    for name, made in folders.items():
        _seal(made, name, checked, pair.private)
        progress.advance(task)
    progress.remove_task(task)
    with safe_open(folders["a0"] / WEIGHTS, framework="pt") as file:
        each = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - no mapping
    return Subject(
        size=size,
        base=base,
        checked=checked,
        adapters=folders,
        trusted=pair.public,
        parameters=parameters,
        read_parameters=parameters - VOCABULARY[size] * sizes["hidden_size"],
        adapter_parameters=each,
    ), peft.eval()


def _seal(folder: Path, name: str, base: CheckedBase, private: Path) -> None:
    (folder / "README.md").unlink(missing_ok=True)
    card = manifest.Manifest(
        name=name,
        version="1",
        base_name=NAME,
        base_digest=base.digest,
        rank=RANK,
        alpha=2 * RANK,
        target_modules=tuple(sorted(PROJECTIONS)),
    )
    manifest.seal(folder, card)
    sign(folder, private)


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A token for each byte, and words for the others, of which no text is made but answers are."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"word{number}" for number in range(size - len(letters)))]
    backend = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, model_max_length=CONTEXT, clean_up_tokenization_spaces=False
    )
