"""The mutation tester: what its faults look like, and that it reports what no test notices and
leaves the tree alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.mutate import mutate
from tests.mutate.mutants import cpp_mutants, fields_beside, python_mutants

PYTHON = {
    "a < b": ["(a <= b)", "(a >= b)"],
    "a is None": ["(a is not None)"],
    "x = a + 'ö' * b": ["x = (a - 'ö' * b)", "x = a + ('ö' / b)"],
    "x += f(a)": ["pass", "x -= f(a)"],
    "a and b": ["(a or b)"],
    "x = -a": ["x = (a)"],
    "x = not a": ["x = (a)"],
    "x = 2, 0.5": ["x = 3, 0.5", "x = 2, 1.0"],
    "x = 0.0, True": ["x = 1.0, True", "x = 0.0, False"],
    "x = min(a)": ["x = (max)(a)"],
    "x = a.amax(b)": ["x = (a.amin)(b)"],
    "x = torch.where(a, b, c)": ["x = (torch.where(a, c, b))"],
    "x = f(a, key=b, device=c)": ["x = (f(a, device=c))"],
    "x = f(a_BQ, b_BQ, c)": ["x = (f(b_BQ, a_BQ, c))"],
    "x = config.one": ["x = (config.two)"],
    "f(a)": ["pass"],
    "x = a if b else c": ["x = a if (not (b)) else c"],
    "with a, b as c: x = d": ["with (__import__('contextlib').nullcontext()), b as c: x = d"],
    '"""1 + 2"""; x: Literal[1] = y; assert a < b; raise E(1); zip(a, strict=True)': [
        '"""1 + 2"""; x: Literal[1] = y; assert a < b; raise E(1); pass'
    ],
}  # fmt: skip
CPP = {
    "const F* x = a * -b;  // 1 + 2": ["const F* x = a / -b; // 1 + 2", "const F* x = a * b; // 1 + 2"],
    "if (a < 2.5f && b) c += T(1) - smaller(x, y);": [
        "if (a <= 2.5f && b) c += T(1) - smaller(x, y);", "if (a >= 2.5f && b) c += T(1) - smaller(x, y);",
        "if (a < 3.5f && b) c += T(1) - smaller(x, y);", "if (a < 2.5f || b) c += T(1) - smaller(x, y);",
        "if (a < 2.5f && b) c -= T(1) - smaller(x, y);", "if (a < 2.5f && b) c += T(2) - smaller(x, y);",
        "if (a < 2.5f && b) c += T(1) + smaller(x, y);", "if (a < 2.5f && b) c += T(1) - larger(x, y);",
    ],
    "return p ? x : F{};": ["return p ? F{} : x;"],
    "template <int k = 1>": [],
}  # fmt: skip


@pytest.mark.parametrize("source", list(PYTHON))
def test_faults_in_python(source: str) -> None:
    settings = "class Config:\n    one: int = 1\n    name: str = 'a'\n    two: int = 2"
    found = python_mutants("a.py", f"# ä\n{source}\n".encode(), fields_beside(settings))
    assert sorted(mutant.after for mutant in found) == sorted(PYTHON[source])
    assert {(mutant.line, mutant.before) for mutant in found} == {(2, source)}


def test_faults_in_definitions() -> None:
    source = b"@torch.no_grad()\ndef f(a: int = 1) -> int:\n    if f(a):\n        return a * a"
    assert [(mutant.line, mutant.after) for mutant in python_mutants("a.py", source, {})] == [
        (1, "@(lambda f: f)"),
        (2, "def f(a: int = 2) -> int:"),
        (3, "if (not (f(a))):"),
        (4, "return (-(a * a))"),
        (4, "return (a / a)"),
    ]


@pytest.mark.parametrize("source", list(CPP))
def test_faults_in_cpp(source: str) -> None:
    found = cpp_mutants("a.h", f"// ä - 1\n{source}\n".encode())
    assert sorted(mutant.after for mutant in found) == sorted(CPP[source])


def test_a_fault_that_nobody_notices_is_reported_and_the_tree_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`double` is tested by one number, for which 2 · x and 2 + x are alike; and one test fails
    without any fault."""
    files = {
        "python/alignmask/__init__.py": "",
        "python/alignmask/loss/__init__.py": "",
        "python/alignmask/loss/toy.py": "def double(x):\n    return 2 * x\n\n\ndef half(x):\n    return x / 2\n",
        "tests/loss/test_toy.py": "from alignmask.loss.toy import double\n\ndef test_double():\n    assert double(2) == 4\n",
        "tests/loss/test_other.py": "from alignmask.loss import toy\n\ndef test_half():\n    assert toy.half(4) == 2\n\n"
        "def test_broken():\n    assert False\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    found = {mutant.after: mutant for mutant in mutate.all_mutants(tmp_path)}
    noticed, reviewed = found["return (x * 2)"], found["return x / 3"]
    survivor = found["return (2 / x)"]._replace(new="(2 + x)", after="return (2 + x)")
    monkeypatch.setattr(
        mutate, "equivalents", lambda: {(reviewed.path, reviewed.before, reviewed.after): "why"}
    )
    results = mutate.mutate([survivor, noticed, reviewed], 1, tmp_path)
    assert results == [(reviewed, "equivalent"), (survivor, "survived"), (noticed, "noticed")]
    assert mutate.report(results) == 50
    printed = capsys.readouterr().out
    assert (
        "left out, as they fail without a fault: ['tests/loss/test_other.py::test_broken']"
        in printed
    )
    assert (
        "survived: python/alignmask/loss/toy.py:2\npython/alignmask/loss/toy.py\nreturn 2 * "
        "x\nreturn (2 + x)" in printed
    )
    assert {name: (tmp_path / name).read_text() for name in files} == files
    assert sum(path.is_file() for path in tmp_path.rglob("*") if ".git" not in path.parts) == len(
        files
    )


def test_reviewed_mutants_exist() -> None:
    """An entry whose line has changed must be reviewed again."""
    known = mutate.equivalents()
    mutants = [
        m for path in sorted({path for path, _, _ in known}) for m in mutate.all_mutants(only=path)
    ]
    assert set(known) <= {(m.path, m.before, m.after) for m in mutants}
    assert all(reason for reason in known.values())
