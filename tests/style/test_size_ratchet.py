"""The size ratchet: a module, function, class or parameter list past its limit wants a new noun."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("libs", "services", "demo", "benchmarks", "tests")
MODULE_LINES, FUNCTION_LINES, CLASS_LINES, PARAMETERS = 500, 60, 300, 7


def modules() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in found if "catena/api/" not in path.as_posix())


def is_kernel(decorator: ast.expr) -> bool:
    """A kernel is launched with addresses and sizes, which it cannot take as one."""
    return ast.unparse(decorator) == "triton.jit"


def oversize(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([argument for argument in taken if argument.arg not in ("self", "cls")])
            if lines > FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {lines} lines, limit {FUNCTION_LINES}"
            if count > PARAMETERS and not any(map(is_kernel, node.decorator_list)):
                yield f"line {node.lineno}: {node.name} takes {count} parameters, limit {PARAMETERS}"
        elif isinstance(node, ast.ClassDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > CLASS_LINES:
                yield f"line {node.lineno}: {node.name} has {lines} lines, limit {CLASS_LINES}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_outgrows_the_house(path: Path) -> None:
    text = path.read_text()
    complaints = list(oversize(ast.parse(text)))
    if text.count("\n") > MODULE_LINES:
        complaints.append(f"module has {text.count(chr(10))} lines, limit {MODULE_LINES}")
    assert not complaints, "\n".join(complaints)


def test_the_ratchet_sees_what_is_too_large() -> None:
    body = "\n".join("    x = 1" for _ in range(61))
    told = list(oversize(ast.parse(f"def f(a, b, c, d, e, f, g, h):\n{body}\n")))
    assert len(told) == 2
