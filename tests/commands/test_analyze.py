"""`alignmask analyze`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import alignmask
from alignmask import _extras
from tests.commands.terminal import Terminal
from tests.evaluation.worlds import small_world, write


def test_of_runs_on_their_own_data(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    """A run and its checkpoint under another name: the same numbers, those of the run's own
    evaluation."""
    run, copy = workshop / "run", tmp_path / "copy"
    shutil.copytree(
        run / "best" if (run / "best").exists() else next((run / "checkpoints").iterdir()), copy
    )
    assert (
        alignmask_(
            "analyze", run, copy, "--workers", 0, "--batch-size", 2, "--out", tmp_path / "out"
        )
        == 0
    )
    models = json.loads((tmp_path / "out" / "analysis.json").read_text())["models"]
    assert [model["name"] for model in models] == ["run (class^0.5*mask)", "copy (class^0.5*mask)"]
    evaluation = json.loads((run / "evaluation.json").read_text())
    mode = evaluation["modes"][evaluation["default"]]
    for model in models:
        assert model["metrics"] == mode["metrics"]
        assert model["alignment"] == mode["alignment"]
    results = tmp_path / "out" / "predictions" / "1_run" / "results.json"
    assert results.read_text() == (run / "results.json").read_text()
    assert "head-room" in alignmask_.out
    assert f"page: {tmp_path}/out/report.html" in alignmask_.out


def test_of_results_beside_a_run(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    shapes, run = workshop / "shapes", workshop / "run"
    data = (
        "--annotations",
        shapes / "instances_val.json",
        "--images",
        shapes / "val",
        "--workers",
        0,
    )
    assert (
        alignmask_(
            "analyze", run / "results.json", run, *data, "--score", "class", "--out", tmp_path
        )
        == 0
    )
    theirs, ours = json.loads((tmp_path / "analysis.json").read_text())["models"]
    assert [theirs["name"], ours["name"]] == ["results.json", "run (class)"]
    modes = json.loads((run / "evaluation.json").read_text())["modes"]
    assert ours["metrics"] == modes["class"]["metrics"]
    assert theirs["metrics"] == modes["class^0.5*mask"]["metrics"]


def test_of_results_without_images(alignmask_: Terminal, tmp_path: Path) -> None:
    annotations, results = write(small_world(), tmp_path)
    arguments = (
        "analyze",
        results,
        "--annotations",
        annotations,
        "--inversions",
        0,
        "--fraction",
        0.02,
    )
    assert alignmask_(*arguments) == 0
    assert json.loads(Path("analysis/analysis.json").read_text())["models"][0]["inversions"] == []
    entries = json.loads(results.read_text())
    results.write_text(json.dumps([*entries, {**entries[0], "image_id": 1}]))
    assert alignmask_(*arguments) == 2
    assert "1 of an unknown image" in alignmask_.err
    assert alignmask_(*arguments, "--ignore-unknown") == 0
    assert json.loads(Path("analysis/analysis.json").read_text())["models"][0]["left_out"] == {
        "of an unknown image": 1
    }


def test_models_have_the_names_that_the_user_gives(alignmask_: Terminal, tmp_path: Path) -> None:
    annotations, results = write(small_world(), tmp_path)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(small_world().results[:3]))
    arguments = ("analyze", results, other, "--annotations", annotations, "--inversions", 0)
    assert alignmask_(*arguments, "--names", "before", "after", "--resamples", 9) == 0
    models = json.loads(Path("analysis/analysis.json").read_text())["models"]
    assert [model["name"] for model in models] == ["before", "after"]
    assert models[0]["difference_to_the_first"] == {}
    assert models[1]["difference_to_the_first"]["AP"]["low"] is not None
    assert "differences to before" in alignmask_.out
    assert '<p id="verdict">Compared with before, after ' in page(Path("analysis"))
    assert alignmask_(*arguments, "--resamples", 0) == 0
    models = json.loads(Path("analysis/analysis.json").read_text())["models"]
    assert models[1]["difference_to_the_first"]["AP"]["low"] is None
    for names in (("before",), ("same", "same")):
        message = "--names: expected 2 different names, one for each model"
        assert message in alignmask_.complaint(*arguments, "--names", *names)
    assert "--resamples: expected 0 or more" in alignmask_.complaint(*arguments, "--resamples", -1)


def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_suppression_is_applied_to_all_models(alignmask_: Terminal, tmp_path: Path) -> None:
    """And `eval` says the same of one of them."""
    world = small_world()
    world.results += [{**result, "score": result["score"] / 2} for result in world.results]
    annotations, results = write(world, tmp_path)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(world.results[::-1]))
    options = (
        "--annotations",
        annotations,
        "--suppression",
        "hard",
        "--suppression-iou",
        0.9,
        "--out",
        tmp_path,
        "--max-detections",
        10,
    )
    assert alignmask_("analyze", results, other, *options, "--inversions", 0) == 0
    models = json.loads((tmp_path / "analysis.json").read_text())["models"]
    assert [model["left_out"] for model in models] == [{"duplicates": len(world.results) // 2}] * 2
    assert alignmask_("eval", "--results", results, *options) == 0
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["left_out"] == models[0]["left_out"]
    assert evaluation["modes"]["score"]["metrics"] == models[0]["metrics"]
    assert (evaluation["max_detections"], models[1]["max_detections"]) == (10, 10)
    assert "<h2>Mask AP (%); at most 10 a class and image</h2>" in page(tmp_path)
    for command in (("analyze", results), ("eval", "--results", results)):
        assert alignmask_(*command, *options, "--suppression-iou", 2) == 2
        assert "--suppression-iou: expected 0 to 1, got 2" in alignmask_.err
        assert alignmask_(*command, *options, "--max-detections", 9) == 2
        assert "--max-detections: expected 10 or more, got 9" in alignmask_.err


def test_mistakes(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    run, other, complaint = workshop / "run", tmp_path / "other", alignmask_.complaint
    annotations, results = write(small_world(), tmp_path)
    assert "name at least one checkpoint or results file" in complaint("analyze")
    assert "nowhere: no such file or folder" in complaint("analyze", run, tmp_path / "nowhere")
    assert "named twice" in complaint("analyze", run, run)
    assert "give --annotations FILE" in complaint("analyze", results)
    assert "give --annotations FILE" in complaint("analyze", run, "--images", tmp_path)
    assert "give --images DIR, too" in complaint(
        "analyze", run, results, "--annotations", annotations
    )
    assert "--fraction: expected more than 0" in complaint("analyze", run, "--fraction", 0)
    assert "--inversions: expected 0 or more" in complaint("analyze", run, "--inversions", -1)
    assert "neither a checkpoint nor a run" in complaint("analyze", workshop / "shapes")
    (tmp_path / "model_final.pkl").touch()
    assert "alignmask convert" in complaint("analyze", tmp_path / "model_final.pkl")
    small_world().write(tmp_path, images=True)
    assert "are not the 6 that the checkpoint was trained on" in complaint(
        "analyze", run, "--annotations", annotations, "--images", tmp_path
    )
    shutil.copytree(run, other)
    for config in other.rglob("config.json"):
        text = json.loads(config.read_text())
        text["data"]["val_limit"] = 2
        config.write_text(json.dumps(text))
    assert "have different validation data" in complaint("analyze", run, other)


def test_it_names_what_is_missing(alignmask_: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extras, "_ANALYZE_MODULES", ("jinja2", "no_such_plots"))
    message = "alignmask analyze needs no_such_plots: install them with `pip install '.[analyze]'` in AlignMask's folder."
    assert message in alignmask_.complaint("analyze", "x.json")


def test_what_something_else_wrote_is_not_overwritten(alignmask_: Terminal, tmp_path: Path) -> None:
    annotations, results = write(small_world(), tmp_path)
    out = tmp_path / "page"
    command = ("analyze", results, "--annotations", annotations, "--out", out, "--resamples", 0)
    out.mkdir()
    (out / "report.html").write_text("mine")
    assert "report.html: it exists, and " in alignmask_.complaint(*command)
    (out / "report.html").unlink()
    for _ in range(2):
        assert alignmask_(*command) == 0


def test_one_model_needs_no_list(tmp_path: Path) -> None:
    annotations, results = write(small_world(), tmp_path)
    files = alignmask.analyze(
        str(results), annotations=annotations, out=tmp_path / "a", resamples=0
    )
    assert files["page"].is_file()
