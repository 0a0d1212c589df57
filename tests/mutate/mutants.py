"""Small faults in a source text, one at a time: what `make mutate` plants."""

from __future__ import annotations

import ast
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

Text = Iterator[tuple[ast.AST, str]]


class Mutant(NamedTuple):
    path: str
    line: int
    start: int  # bytes [start, end) of the file are replaced
    end: int
    new: str
    before: str  # the lines around, their white space collapsed
    after: str


def _mutant(path: str, source: bytes, start: int, end: int, new: str) -> Mutant:
    first, last = source.rfind(b"\n", 0, start) + 1, (source + b"\n").find(b"\n", end)
    before, after = (
        " ".join((source[first:start] + middle + source[end:last]).decode().split())
        for middle in (source[start:end], new.encode())
    )
    return Mutant(path, source.count(b"\n", 0, start) + 1, start, end, new, before, after)


# ---- Python

COMPARISONS: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.In: [ast.NotIn], ast.NotIn: [ast.In],
    ast.Is: [ast.IsNot], ast.IsNot: [ast.Is],
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
OPPOSITES = {
    "min": "max",
    "minimum": "maximum",
    "amin": "amax",
    "argmin": "argmax",
    "floor": "ceil",
    "any": "all",
}
OPPOSITES |= {b: a for a, b in OPPOSITES.items()}
# What holds settings: the last name before theirs.
CONFIGS = {"config", "train", "loss", "model", "data"}
# Keywords that say nothing about results on this machine: checks, speed, and places where
# everything is the same here.
NEUTRAL = {"strict", "device", "encoding", "non_blocking", "fused", "stacklevel"}


def fields_beside(*sources: str) -> dict[str, str]:
    """Of every field of the classes in Python sources: the next one of its class with the same
    annotation."""
    beside = {}
    for node in (
        node
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    ):
        alike = defaultdict(list)
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                alike[ast.unparse(statement.annotation)].append(statement.target.id)
        for names in alike.values():
            beside |= {a: b for a, b in zip(names, names[1:] + names[:1], strict=True) if a != b}
    return beside


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """As ast.walk(), without types, messages, neutral keywords, and assertions, which stop early
    what would fail anyway."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns") or isinstance(
            node, (ast.Assert, ast.Raise, ast.JoinedStr)
        ):
            continue
        if isinstance(node, ast.keyword) and node.arg in NEUTRAL:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child)


def _replaced(node: ast.AST, **changes: object) -> str:
    return ast.unparse(type(node)(**{**dict(ast.iter_fields(node)), **changes}))


def _name(node: ast.AST) -> str:
    return (
        node.id
        if isinstance(node, ast.Name)
        else node.attr
        if isinstance(node, ast.Attribute)
        else ""
    )


def _call_variants(node: ast.Call) -> Text:
    name, args = _name(node.func), node.args
    if name in OPPOSITES:
        yield (
            node.func,
            _replaced(
                node.func, **{"id" if isinstance(node.func, ast.Name) else "attr": OPPOSITES[name]}
            ),
        )
    if name == "where" and len(args) == 3:
        yield node, _replaced(node, args=[args[0], args[2], args[1]])
    for keyword in node.keywords:
        if keyword.arg and keyword.arg not in NEUTRAL:
            yield (
                node,
                _replaced(
                    node, keywords=[other for other in node.keywords if other is not keyword]
                ),
            )
    for i, (a, b) in enumerate(itertools.pairwise(args)):
        kind = [
            re.sub(".*?(_[A-Z0-9]+)?$", r"\1", _name(arg)) if _name(arg) else None for arg in (a, b)
        ]  # its shape suffix
        if (
            kind[0] == kind[1] is not None
            and name not in ("isinstance", "getattr", "where")
            and _name(a) != _name(b)
        ):
            yield node, _replaced(node, args=[*args[:i], b, a, *args[i + 2 :]])


def _variants(node: ast.AST, beside: dict[str, str]) -> Text:
    """Wrong versions of a node: what is replaced, and by what."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from ((node, _replaced(node, ops=[new()])) for new in COMPARISONS[type(node.ops[0])])
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
        yield node, _replaced(node, op=OPERATORS[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield node, _replaced(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
    elif isinstance(node, ast.UnaryOp):
        yield node, ast.unparse(node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        wrong = (
            not node.value
            if isinstance(node.value, bool)
            else node.value + 1
            if isinstance(node.value, int)
            else 2 * node.value or 1.0
        )
        yield node, repr(wrong)
    elif isinstance(node, ast.Attribute) and node.attr in beside and _name(node.value) in CONFIGS:
        yield node, _replaced(node, attr=beside[node.attr])
    elif isinstance(node, ast.Call):
        yield from _call_variants(node)
    if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.comprehension)):
        for test in node.ifs if isinstance(node, ast.comprehension) else [node.test]:
            if not isinstance(test, (ast.Compare, ast.UnaryOp)):
                yield test, f"not ({ast.unparse(test)})"
    if isinstance(node, ast.Return) and isinstance(node.value, ast.BinOp):
        yield node.value, f"-({ast.unparse(node.value)})"
    if isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield node, "pass"
    if isinstance(node, ast.With):
        yield from (
            (i.context_expr, "__import__('contextlib').nullcontext()")
            for i in node.items
            if not i.optional_vars
        )
    if isinstance(node, ast.FunctionDef):
        plain = ("staticmethod", "classmethod", "property")
        yield from ((d, "lambda f: f") for d in node.decorator_list if _name(d) not in plain)


def python_mutants(path: str, source: bytes, beside: dict[str, str]) -> list[Mutant]:
    starts = [0, *(match.end() for match in re.finditer(b"\n", source))]
    mutants = []
    for node in _walk(ast.parse(source)):
        for old, new in _variants(node, beside):
            start = starts[old.lineno - 1] + old.col_offset  # type: ignore[attr-defined]
            end = starts[old.end_lineno - 1] + old.end_col_offset  # type: ignore[attr-defined]
            text = new if isinstance(old, (ast.stmt, ast.Constant)) else f"({new})"
            mutants.append(_mutant(path, source, start, end, text))
    return mutants


# ---- C++, by text: clang-format puts spaces around binary operators, and around nothing else

SIGNS = [
    ("+", "-"),
    ("-", "+"),
    ("*", "/"),
    ("/", "*"),
    ("<", "<="),
    ("<=", "<"),
    (">", ">="),
    (">=", ">"),
    ("==", "!="),
]
SIGNS += [
    ("<", ">="),
    (">", "<="),
    ("&&", "||"),
    ("||", "&&"),
    ("+=", "-="),
    ("*=", "+="),
    (">>", "<<"),
    ("<<", ">>"),
]
CPP: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    *((rf"(?<= ){re.escape(a)}(?= )", b) for a, b in SIGNS),
    (r"\bsmaller\b(?=\()", "larger"), (r"\blarger\b(?=\()", "smaller"),
    (r"(?<=[(=?:,*/+] )-(?=\w)|(?<=[({])-(?=\w)|(?<=return )-", ""),
    (r"(?<![\w.'])\d+(?:\.\d+)?(?=f?(?![\w.']))", lambda m: str(ast.literal_eval(m[0].lstrip("0") or "0") + 1)),
    (r"(?<=\? )([^?:;]+) : ((?:[^?:;,(){}]|\(\w*\)|\{\})+)(?=[;,)}])", lambda m: f"{m[2]} : {m[1]}"),
]  # fmt: skip


def cpp_mutants(path: str, source: bytes) -> list[Mutant]:
    mutants, at = [], 0
    for line in source.decode().splitlines(keepends=True):
        code = line.split("//")[0]
        if not re.match(r"\s*(#|template|using|static_assert)", code):
            for pattern, new in CPP:
                for match in re.finditer(pattern, code):
                    span = (at + len(code[:end].encode()) for end in match.span())
                    mutants.append(
                        _mutant(path, source, *span, new if isinstance(new, str) else new(match))
                    )
        at += len(line.encode())
    return mutants
