"""What `import alignmask` offers: its names, how quickly they come, their examples, their types."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import alignmask
from alignmask.evaluation.calibrators import read_calibration
from alignmask.pretrained.write import write_mask2former
from tests import tiny
from tests.commands.terminal import photo
from tests.model import peers

NAMES = """load train evaluate analyze calibrate export draw from_mask2former from_huggingface Config Instances Predictor
recipes ops __version__""".split()  # noqa: SIM905
VERBS = NAMES[:9]


# -- names
# --------------------------------------------------------------------------------------------------


def test_names() -> None:
    assert sorted(dir(alignmask)) == sorted(alignmask.__all__) == sorted(NAMES)
    for name in NAMES:
        assert getattr(alignmask, name) is getattr(alignmask, name)
    with pytest.raises(AttributeError, match="module 'alignmask' has no attribute 'predict'"):
        _ = alignmask.predict  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    """What is imported for type checkers alone is what `__getattr__` imports, from the same
    modules."""
    tree = ast.parse(Path(alignmask.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {
        alias.name: alias.name
        if node.module == "alignmask"
        else node.module.removeprefix("alignmask.")
        for node in imports
        if node.module
        for alias in node.names
    }
    assert seen == alignmask._HOMES
    assert {*seen, "__version__"} == set(NAMES)


def in_a_new_process(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, check=True
    )


def test_the_import_brings_nothing_heavy() -> None:
    done = in_a_new_process("import sys, alignmask; dir(alignmask); print(*sys.modules)")
    loaded = done.stdout.split()
    assert [name for name in loaded if name.startswith("alignmask.")] == [
        "alignmask._extras",
        "alignmask._version",
    ]
    assert not {"torch", "numpy", "PIL", "timm", "matplotlib"} & set(loaded)
    done = in_a_new_process(
        "import sys, alignmask; alignmask.Config(); alignmask.recipes.shapes_tiny(); "
        "print(*sys.modules)"
    )
    assert not {"torch", "numpy"} & set(done.stdout.split())


def test_the_import_is_quick() -> None:
    """In processor time, which other processes of the machine do not change."""
    code = "import time; start = time.process_time(); import alignmask; print(time.process_time() - start)"
    seconds = [float(in_a_new_process(code).stdout) for _ in range(5)]
    assert statistics.median(seconds) < 0.05, seconds  # 0.01 on a processor of 2023


def test_rooms_are_there_once_they_are_imported() -> None:
    code = """
import alignmask
assert not hasattr(alignmask, "training")
import alignmask.training.signals
assert alignmask.training.signals.Stopped
assert "training" not in dir(alignmask)"""
    in_a_new_process(code)


# -- examples
# --------------------------------------------------------------------------------------------------


def run_example(function: Callable[..., Any]) -> None:
    example = doctest.DocTestParser().get_doctest(
        inspect.getdoc(function) or "", {"alignmask": alignmask}, function.__name__, None, None
    )
    assert example.examples
    said: list[str] = []
    assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the examples have it: a photo, a run (by the example of `train`), weights of
    other projects."""
    folder = tmp_path_factory.mktemp("workshop")
    recipe = alignmask.recipes.shapes_tiny()
    assert recipe.data.shapes is not None
    shapes = replace(recipe.data.shapes, root=Path("shapes"), train_images=4, val_images=3, size=64)
    recipe = replace(
        recipe,
        model=tiny.model_config(num_classes=6),
        data=replace(
            recipe.data, shapes=shapes, crop=64, eval_short_side=64, eval_max_side=64, workers=0
        ),
        train=replace(recipe.train, batch_size=2, max_minutes=None),
    )
    photo(folder / "photo.jpg", (50, 70))
    peer = peers.mask2former(peers.BACKBONES["swin"])
    peer.config.id2label = dict(enumerate(["cat", "dog", "cow", "hen", "owl"]))
    peer.save_pretrained(folder / "mask2former-swin")
    theirs = alignmask.from_huggingface(peer)
    write_mask2former(theirs.model.state_dict(), theirs.config, folder / "model_final.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(alignmask.recipes, "shapes_tiny", lambda: recipe)
        run_example(alignmask.train)
    return folder


@pytest.fixture
def inside(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workshop)
    return workshop


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_examples(verb: str, inside: Path) -> None:
    run_example(getattr(alignmask, verb))


@pytest.mark.parametrize("verb", VERBS)
def test_every_argument_is_documented(verb: str) -> None:
    function = getattr(alignmask, verb)
    text = inspect.getdoc(function) or ""
    for heading in ("Args:", "Returns:", "Raises:", "Example:"):
        assert f"\n{heading}\n" in text, heading
    arguments = text[text.index("\nArgs:\n") : text.index("\nReturns:\n")]
    described = re.findall(r"^    (\w+): \S", arguments, re.MULTILINE)
    assert described == list(inspect.signature(function).parameters)


# -- what the verbs take
# -------------------------------------------------------------------------------------------------


def test_evaluate_takes_models_and_results(inside: Path) -> None:
    predictor = alignmask.load("runs/shapes")
    data = {"annotations": "shapes/instances_val.json", "images": "shapes/val"}
    own = alignmask.evaluate(predictor, workers=0, out="own")
    assert alignmask.evaluate("runs/shapes", workers=0, **data) == own
    results = alignmask.evaluate("own/results.json", annotations=data["annotations"], out="again")
    assert results.metrics["score"] == own.metrics[own.default]
    assert {path.name for path in Path("again").iterdir()} == {
        "evaluation.json",
        "per_class.csv",
        "confusion.png",
    }
    for arguments, message in (
        ({}, "give annotations"),
        ({"annotations": data["annotations"], "images": data["images"]}, "without them"),
    ):
        with pytest.raises(ValueError, match=message):
            alignmask.evaluate("own/results.json", **arguments)
    with pytest.raises(ValueError, match="both images and annotations, or neither"):
        alignmask.evaluate(predictor, images=data["images"])
    with pytest.raises(FileNotFoundError, match="checkpoint runs/nothing: no such"):
        alignmask.evaluate("runs/nothing")


def test_calibrate_takes_models_and_results(inside: Path, tmp_path: Path) -> None:
    predictor = alignmask.load("runs/shapes")
    data = {"annotations": "shapes/instances_val.json", "images": "shapes/val"}
    options: dict[str, Any] = {"workers": 0, "resamples": 0, "method": "linear"}
    own = alignmask.calibrate(predictor, **options)
    assert own.file is None
    assert predictor.calibration == own.calibration
    assert own.calibration.fit.score == predictor.config.model.score
    stored = alignmask.calibrate("runs/shapes", out=tmp_path / "c.json", **data, **options)
    assert stored.calibration == own.calibration
    assert read_calibration(tmp_path / "c.json") == own.calibration
    entries = json.loads(Path("runs/shapes/results.json").read_text())
    given = [
        alignmask.calibrate(results, annotations=data["annotations"], **options)
        for results in ("runs/shapes/results.json", Path("runs/shapes/results.json"), entries)
    ]
    assert given[0].calibration == given[1].calibration == given[2].calibration
    assert given[0].calibration.pooled == own.calibration.pooled
    for arguments, message in (
        ({"precision": 1.0}, "precision: expected more than 0 and less than 1, got 1"),
        ({"confidence": 0.0}, "confidence: expected more"),
        ({"iou": 0.0}, "iou: expected more than 0"),
        ({"fewest": 0}, "fewest of 1 or more"),
        ({"annotations": data["annotations"]}, "both images and annotations, or neither"),
    ):
        with pytest.raises(ValueError, match=message):
            alignmask.calibrate(predictor, **arguments)
    with pytest.raises(ValueError, match="of results, give annotations, and no images"):
        alignmask.calibrate(entries)


def test_analyze_takes_loaded_models_and_leaves_them_as_they_are(inside: Path) -> None:
    predictor = alignmask.load("runs/shapes")
    seen: list[Any] = []
    alignmask.analyze(
        {"mine": predictor, "file": "runs/shapes/results.json"},
        annotations="shapes/instances_val.json",
        images="shapes/val",
        out="both",
        score="class",
        workers=0,
        measured=seen.extend,
    )
    assert [model.name for model in seen] == ["mine (class)", "file"]
    assert predictor.model.config.score == "class^0.5*mask"
    with pytest.raises(TypeError, match="by name"):
        alignmask.analyze([predictor])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one"):
        alignmask.analyze([])
    with pytest.raises(ValueError, match="give annotations: only models"):
        alignmask.analyze(["runs/shapes/results.json"])
    with pytest.raises(ValueError, match=r"mine is to predict on x\.json: give its images"):
        alignmask.analyze({"mine": predictor}, annotations="x.json")


def test_predictors_draw_and_show_themselves(inside: Path) -> None:
    predictor = alignmask.load("runs/shapes")
    found = predictor.predict("photo.jpg")
    threshold = float(found.scores[1])
    few = predictor.predict("photo.jpg", threshold=threshold)
    assert len(few) == int((found.scores >= threshold).sum()) < len(found)
    assert (
        repr(few)
        == f"Instances({len(few)} in 50 x 70 pixels, scores {few.scores[0]:.2f} to {few.scores[-1]:.2f})"
    )
    assert repr(found[:0]) == "Instances(0 in 50 x 70 pixels)"
    pictures = [
        predictor.draw("photo.jpg", threshold=threshold),
        predictor.draw("photo.jpg", few, threshold=0),
        alignmask.draw("photo.jpg", found, predictor.class_names, threshold=threshold),
    ]
    assert len({picture.tobytes() for picture in pictures}) == 1
    assert (
        alignmask.draw("photo.jpg", found, threshold=threshold).tobytes() != pictures[0].tobytes()
    )
    assert alignmask.draw("photo.jpg", found[:0]).size == pictures[0].size


def test_loaded_weights_predict_with_their_classes(inside: Path) -> None:
    predictor = alignmask.from_huggingface("mask2former-swin")
    assert (
        repr(predictor)
        == "Predictor('mask2former-swin', swin_tiny_patch4_window7_224, 5 classes, cpu)"
    )
    assert predictor.category_ids == [1, 2, 3, 4, 5]
    assert len(predictor.predict("photo.jpg")) > 0
    other = replace(predictor.config.model, num_classes=3)
    assert alignmask.from_huggingface("mask2former-swin", other).class_names == [
        "class 1",
        "class 2",
        "class 3",
    ]


# -- types
# --------------------------------------------------------------------------------------------------

PROGRAM = '''
"""What a user writes, for `mypy --strict`."""

from dataclasses import replace
from pathlib import Path

import torch

import alignmask
from alignmask import Config, Instances, Predictor, ops, recipes


def best(predictor: Predictor, photos: list[Path]) -> dict[Path, float]:
    found: dict[Path, Instances] = {photo: predictor.predict(photo, threshold=0.5) for photo in photos}
    return {photo: float(instances.scores[0]) for photo, instances in found.items() if len(instances)}


config: Config = recipes.shapes_tiny()
config = replace(config, train=replace(config.train, iterations=100))
run: Path = alignmask.train(config, resume=False)
predictor = alignmask.load(run, device="cpu")
predictor.draw("photo.jpg").save("drawn.png")
alignmask.draw("photo.jpg", predictor.predict("photo.jpg"), predictor.class_names).save("drawn.png")
ap: float = alignmask.evaluate(predictor).AP
page: Path = alignmask.analyze([run, "results.json"], annotations="val.json", images="val")["page"]
expected: float | None = alignmask.calibrate(predictor).after["LaECE0"].value
parity = alignmask.export(predictor, "model.onnx", format="onnx", half=True).parity
share: float | None = parity.same if parity else None
theirs: Predictor = alignmask.from_mask2former("model_final.pkl")
names: list[str] = alignmask.from_huggingface("folder").class_names
x = torch.ones(1, 4, 1, 8)
out: torch.Tensor = ops.ms_deform_attn(x, [(2, 2)], torch.rand(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1))
version: str = alignmask.__version__
print(best(predictor, [Path("photo.jpg")]), ap, page, expected, share, theirs, names, out, version)
'''


MISTAKES = """
predictor.predict(5)
alignmask.train(run)
alignmask.nothing
labels = alignmask.load(run).labels
"""


@pytest.mark.slow
def test_a_users_program_is_typed(tmp_path: Path) -> None:
    """`mypy --strict` finds nothing in the program, and each mistake after its end."""
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(PROGRAM + MISTAKES)
    # An editable install is found by an import hook, which mypy does not run: its folder is put on
    # the path instead.
    site = {**os.environ, "PYTHONPATH": str(Path(alignmask.__file__).parents[1])}
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "program.py"]
    said = subprocess.run(
        command, cwd=tmp_path, env=site, capture_output=True, text=True, check=False
    ).stdout
    found = [int(line.split(":")[1]) for line in said.splitlines() if ": error: " in line]
    end = len((PROGRAM + MISTAKES).splitlines())
    assert found == [end - 3, end - 2, end - 1, end], said


# -- the compiled module
# -------------------------------------------------------------------------------------------------


def test_the_stub_of_the_compiled_module_names_what_is_in_it() -> None:
    """pybind11 writes every function's arguments, with their defaults, into the first line of its
    docstring."""
    core = importlib.import_module("alignmask._core")
    stub = ast.parse((Path(alignmask.__file__).parent / "_core.pyi").read_text())
    expected = {
        node.name: ([a.arg for a in node.args.args], len(node.args.defaults))
        for node in stub.body
        if isinstance(node, ast.FunctionDef)
    }
    found = {}
    for name in dir(core):
        if not name.startswith("_"):
            line = (getattr(core, name).__doc__ or "").splitlines()[0]
            arguments = re.findall(
                r"(\w+): [^,=()]+(?:\([^)]*\))?(= )?", line[line.index("(") + 1 : line.rindex(")")]
            )
            found[name] = (
                [argument for argument, _ in arguments],
                sum(bool(default) for _, default in arguments),
            )
    assert found == expected
