"""`alignmask export`, and what is done with its files: `alignmask bench` and `alignmask eval`."""

from __future__ import annotations

import json
import os
import signal
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import alignmask
from alignmask import cli
from alignmask.exporting import files
from alignmask.exporting.export import Exported
from alignmask.exporting.parity import Parity
from alignmask.exporting.segmenter import Segmenter
from tests.commands.terminal import Terminal


class Written(NamedTuple):
    file: Path
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def written(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The run, exported to torch.export by the command."""
    file = tmp_path_factory.mktemp("exported") / "mine.pt2"
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main(["export", str(workshop / "run"), "--format", "torch", "--out", str(file)])
    return Written(file, code, out.getvalue(), err.getvalue())


def test_export_of_a_run(workshop: Path, written: Written) -> None:
    first, second = written.out.splitlines()
    assert first.startswith(f"{written.file}: ")
    assert first.endswith(" MB, float32")
    assert "operators: " in second
    assert "alignmask.ms_deform_attn.default" in second
    extra = {"alignmask": ""}
    program = torch.export.load(written.file, extra_files=extra).module()
    predictor = alignmask.load(workshop / "run")
    about = json.loads(extra["alignmask"])
    assert about["class_names"] == predictor.class_names
    assert about["category_ids"] == predictor.category_ids
    assert (about["short_side"], about["max_side"], about["device"]) == (64, 64, "cpu")
    image, size = torch.randint(0, 256, (1, 3, 96, 64)).to(torch.uint8), torch.tensor([[90, 64]])
    with torch.no_grad():
        expected = Segmenter(predictor.model)(image, size)
    for found, value in zip(program(image, size), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_parity_is_not_claimed_of_a_model_that_finds_nothing(written: Written) -> None:
    """Three steps of training are too few to find anything in the run's three validation images."""
    assert written.code == 3
    *steps, last = written.err.splitlines()
    assert "parity is not shown: the model finds nothing with a score of 0.5 or more" in last
    assert "in 3 photos; name photos that show objects with --images DIR" in last
    assert [line.split(" s  ")[1] for line in steps if " s  " in line] == [
        "tracing the model",
        "writing the program",
        "comparing the file with the model",
    ]


@pytest.mark.parametrize(
    ("parity", "code", "text"),
    [
        (None, 0, "not compared with the model: onnxruntime is missing"),
        (Parity(2, True, 9, 1.0, 0.999, 0.99, 1e-5), 0, "100.0% of 9 detections in 2 photos"),
        (Parity(2, True, 0, 0.0, 0.0, 0.0, 0.0), 3, "parity is not shown"),
    ],
)
def test_what_the_command_says_of_parity(
    alignmask_: Terminal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parity: Parity | None,
    code: int,
    text: str,
) -> None:
    given: dict[str, Any] = {}

    def export(checkpoint: Path, path: Path, **options: Any) -> Exported:
        given.update(options)
        path.write_text("")
        about = {"precision": "float16", "opset": 18, "operators": ["Add", "Conv"]}
        return Exported(path, about, parity)

    monkeypatch.setattr(alignmask, "export", export)
    images = tmp_path / "photos"
    assert alignmask_("export", "x", "--format", "onnx", "--half", "--images", images) == code
    assert alignmask_.out.startswith(
        "model.onnx: 0.0 MB, float16, opset 18\n2 operators: Add, Conv\n"
    )
    assert text in (alignmask_.err if code else alignmask_.out)
    del given["say"]
    assert given == {
        "format": "onnx",
        "images": images,
        "sampling": "gather",
        "half": True,
        "device": torch.device("cpu"),
    }


def test_a_terminated_export_leaves_nothing(
    workshop: Path, alignmask_: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        assert list(tmp_path.glob("new/.model.pt2.*")), "the part that is being written"
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("alignmask.exporting.export._program", stop)
    before = signal.getsignal(signal.SIGTERM)
    file = tmp_path / "new" / "model.pt2"
    assert alignmask_("export", workshop / "run", "--format", "torch", "--out", file) == 130
    assert "interrupted" in alignmask_.err
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_export_mistakes(
    workshop: Path, alignmask_: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, complaint = workshop / "run", alignmask_.complaint
    text = complaint("export", run, "--format", "onnx", "--out", tmp_path / "model.pt2")
    assert f"expected a name that ends in .onnx, got {tmp_path}/model.pt2" in text
    torch_format = ("--format", "torch")
    assert "no such file or folder" in complaint("export", tmp_path / "nowhere", *torch_format)
    assert "device 'gpu' cannot be used" in complaint(
        "export", run, *torch_format, "--device", "gpu"
    )
    assert "export: no image files in" in complaint(
        "export", run, *torch_format, "--images", tmp_path
    )
    assert "for ONNX alone" in complaint("export", run, *torch_format, "--half")
    foreign = tmp_path / "own.pt2"
    foreign.write_text("mine")
    assert "nothing is overwritten" in complaint("export", run, *torch_format, "--out", foreign)
    assert foreign.read_text() == "mine"
    foreign.unlink()
    assert alignmask_("export", run) == 2
    assert "--format" in alignmask_.err
    monkeypatch.setattr(files, "missing", lambda *_: ["onnxscript"])
    assert "needs onnxscript: pip install '.[onnx]'" in complaint("export", run, "--format", "onnx")
    assert not list(tmp_path.iterdir())


# -- bench, eval
# --------------------------------------------------------------------------------------------------


def test_bench(written: Written, alignmask_: Terminal) -> None:
    threads = torch.get_num_threads()
    assert alignmask_("bench", written.file, "--runs", 3, "--size", 65, 40) == 0
    first, _, timing = alignmask_.out.splitlines()
    assert first.endswith(" MB, float32")
    assert timing.startswith("96 x 64, 1 thread: median ")
    assert timing.endswith(" ms of 3 runs")
    assert torch.get_num_threads() == threads
    assert alignmask_.complaint("bench", written.file, "--runs", 0).startswith("bench: ")
    assert "no such file" in alignmask_.complaint("bench", "nowhere.onnx")


def test_eval_of_an_exported_file_is_that_of_its_checkpoint(
    workshop: Path, written: Written, alignmask_: Terminal, tmp_path: Path
) -> None:
    data = ("--data-images", workshop / "shapes/val")
    data += ("--annotations", workshop / "shapes/instances_val.json", "--workers", 0)
    found = {}
    for name, model in (("file", written.file), ("run", workshop / "run")):
        assert alignmask_("eval", model, *data, "--out", tmp_path / name) == 0
        assert "AP" in alignmask_.out
        found[name] = json.loads((tmp_path / name / "results.json").read_text())
        assert (tmp_path / name / "evaluation.json").is_file()
    assert len(found["file"]) > 10
    for one, other in zip(found["file"], found["run"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        del one["score"], other["score"]
        assert one == other


def test_an_exported_file_takes_tiles(
    workshop: Path, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are asked for, or else those of the model that was exported."""
    images, annotations = workshop / "shapes/val", workshop / "shapes/instances_val.json"
    seen: list[int] = []

    def note(path: Path, threads: int | None = None) -> Any:
        run = open_file(path, threads)
        return lambda image_BCHW, *size: seen.append(len(image_BCHW)) or run(image_BCHW, *size)

    open_file = files.open_file
    monkeypatch.setattr(files, "open_file", note)
    given = {"images": images, "annotations": annotations, "workers": 0, "batch_size": 4}
    alignmask.evaluate(written.file, **given, tile=48)
    assert seen == [4, 4, 4]  # of three images of 64 x 64
    alignmask.evaluate(written.file, **given)
    assert seen[3:] == [3]
    said = files.about(written.file)
    assert (said["tile"], said["overlap"]) == (None, 0.2)
    monkeypatch.setattr(files, "about", lambda path: {**said, "tile": 32, "overlap": 0})
    evaluation = alignmask.evaluate(written.file, **given)
    assert seen[4:] == [4, 4, 4]
    assert evaluation.predictions > 10
    alignmask.evaluate(written.file, **given, tile="whole")
    assert seen[7:] == [3]


def test_eval_mistakes(
    workshop: Path, written: Written, alignmask_: Terminal, tmp_path: Path
) -> None:
    images, annotations = workshop / "shapes/val", workshop / "shapes/instances_val.json"
    data = ("--data-images", images, "--annotations", annotations)
    assert "no data of its own" in alignmask_.complaint("eval", written.file)
    assert "a side of 32 pixels or more" in alignmask_.complaint(
        "eval", written.file, *data, "--tile", 16
    )
    foreign = tmp_path / "model.pt2"
    foreign.write_text("mine")
    assert "not a file that `alignmask export` wrote" in alignmask_.complaint(
        "eval", foreign, *data
    )
    other = json.loads(annotations.read_text())
    other["categories"][0]["name"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert "are not the" in alignmask_.complaint(
        "eval", written.file, "--data-images", images, "--annotations", tmp_path / "other.json"
    )
