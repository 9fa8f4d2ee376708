"""What an answer looks like beside its question, in figures that bear on whether it is right. Pure.

The executor takes them of every answer and tells them with the execution; the router learns from those that were judged
how to read them and hands the reading back with a cascade, as `Settings.scorer`.
"""

import ast
import math
import operator
import re
from collections.abc import Sequence

NAMES = (
    "length",
    "length_ratio",
    "lines",
    "numbers",
    "equations",
    "wrong_equations",
    "marked_result",
    "has_result",
    "fraction",
    "negative",
    "magnitude",
    "result_was_given",
    "given_numbers_used",
    "hedges",
    "repeated_lines",
    "last_equation_is_result",
)
"""The order of an answer's features; one is only ever added at the end."""

_HEAD_CHARS, _TAIL_CHARS, _MOST_EQUATIONS, _MOST_LEFT = 1000, 3000, 20, 60
"""Of a long text its beginning and its end are looked at; the length that is told is the whole one's."""
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_RIGHT = re.compile(r"=\s*\$?(-?\d[\d,]*(?:\.\d+)?)")
_LEFT = re.compile(r"[\d.,+\-*/()x\u00d7\u00f7 ]{3,}\Z")
_RESULT = re.compile(r"(?:####|\\boxed\{|answer is:?|answer:)\s*\$?\s*(-?\d[\d,]*(?:\.\d+)?)")
_HEDGES = re.compile(
    r"\b(?:however|assum\w+|sorry|impossible|cannot|can't|unclear|not enough|doesn't make sense|wait|unfortunately)\b"
)
_MARKED = ("####", "\\boxed{", "answer is", "answer:")
_HEDGING = (
    "however",
    "assum",
    "sorry",
    "impossible",
    "cannot",
    "can't",
    "unclear",
    "not enough",
    "doesn't make sense",
    "wait",
    "unfortunately",
)
"""Plain words are found many times faster than patterns, and most answers have none of them."""
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def answer_features(question: str, answer: str) -> tuple[float, ...]:
    """One figure for each of `NAMES`; of an empty answer, none."""
    if not answer.strip():
        return ()
    text, asked = _ends(answer.strip()), _ends(question)
    lowered = text.lower()
    marks = any(mark in lowered for mark in _MARKED)
    hedges = _HEDGES.findall(lowered) if any(word in lowered for word in _HEDGING) else ()
    given = {_plain(found) for found in _NUMBER.findall(asked)}
    numbers = [_plain(found) for found in _NUMBER.findall(text)]
    equations = _equations(text)
    wrong = sum(_is_wrong(left, right) for left, right in equations)
    marked = _RESULT.findall(lowered) if marks else ()
    result = _plain(marked[-1]) if marked else (numbers[-1] if numbers else "")
    value = float(result[:15]) if result else 0.0
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    figures = (
        math.log1p(len(answer)),
        math.log((1.0 + len(answer)) / (1.0 + len(question))),
        math.log1p(len(lines)),
        math.log1p(len(numbers)),
        math.log1p(len(equations)),
        math.log1p(wrong),
        float(marks),
        float(bool(result)),
        float(value != int(value)),
        float(value < 0.0),
        math.log1p(abs(value)),
        float(result in given and bool(result)),
        len(given & set(numbers)) / len(given) if given else 1.0,
        math.log1p(len(hedges)),
        (len(lines) - len(set(lines))) / max(len(lines), 1),
        float(bool(equations) and _plain(equations[-1][1]) == result),
    )
    assert len(figures) == len(NAMES)
    return tuple(round(figure, 4) for figure in figures)


def sureness(features: Sequence[float], scorer: Sequence[float]) -> float | None:
    """Probability that an answer of these features is right, by `scorer` (log-odds, then one weight a feature).

    None without features, or where the two do not fit each other.
    """
    if not features or len(scorer) != len(features) + 1:
        return None
    odds = scorer[0] + sum(weight * figure for weight, figure in zip(scorer[1:], features, strict=True))
    return 1.0 / (1.0 + math.exp(-min(max(odds, -30.0), 30.0)))


def _plain(number: str) -> str:
    """A number as it is compared: without separators and needless zeros."""
    told = number.replace(",", "")
    return told.rstrip("0").rstrip(".") if "." in told else told


def _ends(text: str) -> str:
    if len(text) <= _HEAD_CHARS + _TAIL_CHARS:
        return text
    return f"{text[:_HEAD_CHARS]}\n{text[-_TAIL_CHARS:]}"


def _equations(text: str) -> list[tuple[str, str]]:
    """Left sides of plain arithmetic with the numbers that they are said to come to."""
    found = []
    # From the sign backwards: a pattern that looks for the left side first tries every place of a long text.
    for right in _RIGHT.finditer(text):
        left = _LEFT.search(text, max(0, right.start() - _MOST_LEFT), right.start())
        if left is not None:
            found.append((left[0], right[1]))
        if len(found) == _MOST_EQUATIONS:
            break
    return found


def _is_wrong(left: str, right: str) -> bool:
    """Whether plain arithmetic says otherwise; what cannot be read is not held against the answer."""
    told = left.lstrip(" .,)").replace(",", "").replace("x", "*").replace("\u00d7", "*").replace("\u00f7", "/").strip()
    try:
        value = _value(ast.parse(told, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return False
    claimed = float(right.replace(",", "")[:15])
    return abs(value - claimed) > 0.011 * max(1.0, abs(value))


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        found: float = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
        return found
    raise ValueError(ast.dump(node))
