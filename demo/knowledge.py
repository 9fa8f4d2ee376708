"""The third part of the tour: pipelines that read memory (the project's own source) and a user's features."""

import ast
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from demo.desk import Desk

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("libs/catena/kit", "libs/catena/plan")
ASKED = 12
LONGEST_PATH = 36
ASK_SOURCE = {
    "name": "ask-source",
    "description": "Finds a function in the project's own source and says in which file it is.",
    "steps": [
        {
            "name": "found",
            "type": "memory",
            "config": {"collection": "source", "query": "{data.key}", "n_results": 1, "format": "{name}: {file}"},
        },
        {
            "name": "answer",
            "type": "model",
            "config": {
                "model": "demo-large",
                "prompt": "<context>{found.text}</context>\nfile: {data.key}",
                "temperature": 0,
                "max_tokens": 64,
            },
        },
    ],
}
IN_STYLE = {
    "name": "in-style",
    "description": "Writes a text in the style that is stored for the user.",
    "steps": [
        {
            "name": "user",
            "type": "feature",
            "config": {"entity_type": "user", "entity_id": "{data.user}", "features": ["style"]},
        },
        {
            "name": "answer",
            "type": "model",
            "config": {
                "model": "demo-large",
                "prompt": "{user.values.style}: {data.text}",
                "temperature": 0,
                "max_tokens": 32,
            },
        },
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One question about the source."""

    key: str
    path: str
    answer: str
    chunks: str

    @property
    def right(self) -> bool:
        """Whether the answer is the file."""
        return self.answer.strip() == self.path


async def ask_source(desk: Desk, progress: Progress) -> list[Found]:
    """Put the project's source into memory, cut along its syntax tree, and ask where functions are."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if path.stat().st_size]
    bar = progress.add_task("reading source", total=len(files))
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        document = {"id": name, "path": name, "title": path.name, "text": path.read_text()}
        await desk.call("POST", "/v1/memory/documents", {"collection": "source", "documents": [document]})
        progress.advance(bar)
    await desk.call("PUT", "/v1/pipelines", {"pipeline": ASK_SOURCE})
    found = []
    for key, name in functions(files)[:ASKED]:
        told = await desk.call("POST", "/v1/predict", {"model_id": "pipeline:ask-source", "data": {"key": key}})
        chunks = told["steps"][0]["output"]["text"]
        found.append(Found(key=key, path=name, answer=str(told["result"]), chunks=chunks))
    return found


def functions(files: list[Path]) -> list[tuple[str, str]]:
    """Public module-level functions with their files; names that occur once and are long enough to be looked for."""
    homes: dict[str, list[str]] = {}
    for path in files:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "_" in node.name.strip("_"):
                homes.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    return sorted(
        (name, where[0])
        for name, where in homes.items()
        if len(where) == 1 and not name.startswith("_") and len(where[0]) <= LONGEST_PATH
    )


async def change_style(desk: Desk) -> list[tuple[str, str]]:
    """Ask the same pipeline before and after the stored feature changes: (style, answer) each time."""
    await desk.call("PUT", "/v1/pipelines", {"pipeline": IN_STYLE})
    answers = []
    for style in ("upper", "first"):
        value = {"entity_type": "user", "entity_id": "ann", "feature": "style", "value": style}
        await desk.call("POST", "/v1/features", {"values": [value]})
        body = {"model_id": "pipeline:in-style", "data": {"user": "ann", "text": "tin"}}
        answers.append((style, str((await desk.call("POST", "/v1/predict", body))["result"])))
    return answers


def show(found: list[Found], styles: list[tuple[str, str]], console: Console) -> None:
    """Print both."""
    table = Table(title="Questions about the project's own source, answered from memory", title_justify="left")
    for name in ("asked for", "answer", "right", "chunks found"):
        table.add_column(name, overflow="fold")
    for one in found:
        table.add_row(one.key, one.answer, "yes" if one.right else f"no, {one.path}", one.chunks)
    console.print(table)
    told = ", then ".join(f"style {style!r} answers {answer!r}" for style, answer in styles)
    console.print(f"the same request through pipeline in-style: {told}")


def failures(found: list[Found], styles: list[tuple[str, str]]) -> list[str]:
    """What did not come out as it must; empty when all did."""
    wrong: list[str] = []
    right = sum(one.right for one in found)
    if right < len(found) / 2:
        wrong.append(f"only {right} of {len(found)} questions about the source were answered right")
    if len({answer for _, answer in styles}) != len(styles):
        wrong.append("changing the stored feature did not change the answer")
    return wrong
