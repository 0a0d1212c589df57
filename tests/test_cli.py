"""The command line as its user meets it: help, every command on a tiny model, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

import alignmask
from alignmask import cli, commands
from alignmask._extras import _TRAIN_MODULES
from alignmask.commands import predict as predict_command
from alignmask.commands import train as train_command
from alignmask.recipes import RECIPES, shapes_tiny
from alignmask.train import checkpoint
from tests.eval.worlds import small_world, write

# A model and a data set for which a step takes milliseconds.
TINY = """--model.backbone.name resnet10t --model.backbone.pretrained False --model.pixel-decoder.width 32
--model.pixel-decoder.layers 1 --model.pixel-decoder.heads 4 --model.pixel-decoder.points 2
--model.pixel-decoder.ffn-width 32 --model.query-decoder.queries 6 --model.query-decoder.layers 2
--model.query-decoder.heads 4 --model.query-decoder.ffn-width 32 --model.aligned-queries.count 7
--model.aligned-queries.points 64 --model.detections 10 --loss.points 32
--data.shapes.train-images 8 --data.shapes.val-images 3 --data.shapes.size 64 --data.crop 64 --data.eval-short-side 64
--data.eval-max-side 64 --data.workers 0 --train.batch-size 2 --train.warmup 1 --train.log-every 1""".split()  # noqa: SIM905


def train_arguments(folder: Path, *more: str, name: str = "run", iterations: int = 3) -> list[str]:
    return [
        "train", "shapes_tiny", "--out", str(folder), "--name", name, "--data.shapes.root", str(folder / "shapes"),
        "--train.iterations", str(iterations), *TINY, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run` (three training steps) and `shapes` (its data)."""
    folder = tmp_path_factory.mktemp("cli")
    assert cli.main(train_arguments(folder)) == 0
    return folder


class Terminal:
    """Runs a command; keeps what it prints."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: Any) -> int:
        self.capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        self.out, self.err = self.capsys.readouterr()
        return code

    def complaint(self, *arguments: Any) -> str:
        """Of a command that is expected to end with a user's error: one line, nothing but it."""
        assert self(*arguments) == cli.USER_ERROR
        assert "Traceback" not in self.out + self.err
        complaints = [line for line in self.err.splitlines() if line.startswith("alignmask: ")]
        assert len(complaints) == 1, self.err
        assert self.err.rstrip().endswith(complaints[0])
        return complaints[0].removeprefix("alignmask: ")


@pytest.fixture(autouse=True)
def _working_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults of options are relative to the working folder: nothing may be left in the repository."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture
def alignmask_(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("ALIGNMASK_DEBUG", raising=False)
    return Terminal(capsys)


# -- help ----------------------------------------------------------------------------------------------------------------

HELP = {
    "train": ("r50_50ep", "mask2former_r50_50ep", "torchrun"),
    "train shapes_tiny": ("--train.learning-rate", "--model.aligned-queries.point-sets", "--dry-run", "--no-resume"),
    "eval": ("CHECKPOINT", "--results FILE", "--annotations FILE", "--per-category"),
    "predict": ("CHECKPOINT", "IMAGE|DIR", "--out DIR", "--threshold"),
    "demo": ("--minutes", "--out DIR"),
    "flops": ("RECIPE", "--size H W", "--aligned-queries"),
    "info": ("usage: alignmask info",),
}


def test_help_is_tested_of_every_command() -> None:
    assert {command.split()[0] for command in HELP} == set(cli.COMMANDS)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_usage_lists_every_command(alignmask_: Terminal, flag: str) -> None:
    assert alignmask_(flag) == 0
    for name, summary in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", alignmask_.out, re.MULTILINE)
    assert alignmask_() == 2
    assert alignmask_.out.startswith("usage: alignmask COMMAND")


@pytest.mark.parametrize("command", HELP)
def test_help(alignmask_: Terminal, command: str) -> None:
    assert alignmask_(*command.split(), "--help") == 0
    assert alignmask_.err == ""
    assert alignmask_.out.startswith(f"usage: alignmask {command}")
    for words in HELP[command]:
        assert words in alignmask_.out, words
    for ugly in ("NoneType", "MISSING", "Annotated", "<function", "object at 0x"):
        assert ugly not in alignmask_.out, ugly


def test_version(alignmask_: Terminal) -> None:
    for flag in ("--version", "-V"):
        assert alignmask_(flag) == 0
        assert alignmask_.out == f"alignmask {alignmask.__version__}\n"


def test_every_recipe_is_a_subcommand(alignmask_: Terminal) -> None:
    alignmask_("train", "--help")
    for name in RECIPES:
        assert f"• {name} " in alignmask_.out


# -- info, flops ---------------------------------------------------------------------------------------------------------


def test_info(alignmask_: Terminal) -> None:
    assert alignmask_("info") == 0
    assert re.search(rf"^torch +{re.escape(torch.__version__)}", alignmask_.out, re.MULTILINE)
    for op in alignmask.ops.OPS:
        assert re.search(rf"^{op} +(kernel|reference)", alignmask_.out, re.MULTILINE)
    assert alignmask_("info", "extra") == 2


WITHOUT_EXTRA = """
import sys
MISSING = sys.argv[1:]
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in MISSING else find_spec(name, *rest)
sys.meta_path.insert(0, Missing())
from alignmask.cli import main
assert main(["info"]) == 0
assert main(["--help"]) == 0
sys.exit(main(["train", "shapes_tiny"]))
"""


def test_without_the_extra_there_is_info_and_advice() -> None:
    """In a process of its own, in which the extra's packages cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_EXTRA, *_TRAIN_MODULES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    advice = f"needs {', '.join(_TRAIN_MODULES)}: install them with `pip install 'alignmask[train]'`."
    assert f"extra [train]  it {advice}" in done.stdout  # of info
    assert done.stderr == f"alignmask: alignmask train {advice}\n"


def test_flops(alignmask_: Terminal) -> None:
    assert alignmask_("flops", "r50_50ep", "--size", 800, 1333, "--aligned-queries", 100) == 0
    first, second, *table = alignmask_.out.splitlines()
    assert first == "r50_50ep: 44.2 M parameters"
    assert second == "one image of 800 x 1333 (padded to 800 x 1344), 100 object queries and 100 aligned queries"
    assert max(map(len, alignmask_.out.splitlines())) <= 100
    values = {line.rsplit(maxsplit=1)[0].split(":")[0].strip(): line.split()[-1] for line in table if line.strip()}
    parts = [float(values[n]) for n in ("backbone", "pixel decoder", "query decoder", "mask logits of the last output")]
    assert float(values["total"]) == pytest.approx(sum(parts), abs=0.2)
    assert float(values["plain total"]) > float(values["total"])


def test_flops_at_the_recipes_own_size(alignmask_: Terminal) -> None:
    assert alignmask_("flops", "shapes_tiny") == 0
    assert "one image of 96 x 128 (padded to 96 x 128), 20 object queries\n" in alignmask_.out
    for line in alignmask_.out.splitlines():
        assert not line.strip().endswith(" 0.0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("r51",), "unknown recipe 'r51': expected one of r50_50ep, "),
        (("r50_50ep", "--size", "0", "32"), "--size: expected positive sides, got 0 32"),
        (("r50_50ep", "--aligned-queries", "-1"), "--aligned-queries -1: r50_50ep cannot have fewer than 0"),
        (("mask2former_r50_50ep", "--aligned-queries", "1"), "--aligned-queries 1: mask2former_r50_50ep has none"),
    ],
)
def test_flops_mistakes(alignmask_: Terminal, arguments: tuple[str, ...], message: str) -> None:
    assert message in alignmask_.complaint("flops", *arguments)


# -- train ---------------------------------------------------------------------------------------------------------------


def test_train_leaves_a_run(workshop: Path) -> None:
    run = workshop / "run"
    for name in ("config.json", "metrics.jsonl", "results.json", "evaluation.json", "best/model.safetensors"):
        assert (run / name).is_file(), name
    config = checkpoint.load_config(checkpoint.resolve(run))
    assert (config.name, config.out, config.train.iterations) == ("run", workshop, 3)
    assert (config.model.backbone.name, config.model.backbone.pretrained) == ("resnet10t", False)
    assert config.train.learning_rate == shapes_tiny().train.learning_rate
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 3]


def test_train_continues(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    assert alignmask_(*train_arguments(tmp_path, iterations=1)) == 0
    assert alignmask_.out == f"run: {tmp_path / 'run'}\n"
    assert alignmask_(*train_arguments(tmp_path, iterations=2)) == 0
    assert "continues at iteration 1" in alignmask_.err
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 1, 2, 2]
    assert "--no-resume" in alignmask_.complaint(*train_arguments(tmp_path, "--loss.points", "33"))
    assert alignmask_(*train_arguments(tmp_path, "--no-resume", "--loss.points", "33", iterations=1)) == 0
    assert len(list(tmp_path.glob("run*"))) == 2


def test_train_dry_run_keeps_nothing(workshop: Path, alignmask_: Terminal) -> None:
    before = sorted(workshop.iterdir())
    assert alignmask_(*train_arguments(workshop, "--dry-run", name="dry")) == 0
    assert "step 3: " in alignmask_.out
    assert "peak memory: " in alignmask_.out
    assert sorted(workshop.iterdir()) == before


def test_train_without_aligned_queries(workshop: Path, alignmask_: Terminal) -> None:
    assert alignmask_(*train_arguments(workshop, "--dry-run", "--without", "model.aligned-queries")) == 0
    assert "aligned_dice 0 " in alignmask_.out.replace("\n", " ")
    text = alignmask_.complaint(*train_arguments(workshop, "--dry-run", "--without", "data.shapes"))
    assert "data.train_images, data.train_annotations, data.val_images, data.val_annotations: not set" in text


def test_train_mistakes(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    assert "unknown recipe 'shapes': expected one of r50_50ep" in alignmask_.complaint("train", "shapes")
    text = alignmask_.complaint(*train_arguments(workshop, "--model.num-classes", "80", name="other"))
    assert "--model.num-classes 6" in text
    text = alignmask_.complaint("train", "r50_50ep", "--out", tmp_path)
    assert "datasets/coco/annotations/instances_train2017.json: cannot read" in text
    text = alignmask_.complaint(*train_arguments(workshop, "--data.crop", "65", name="other"))
    assert "data.crop: expected a positive multiple of 32, got 65" in text
    assert not (workshop / "other").exists()


def test_unknown_options_are_named(alignmask_: Terminal) -> None:
    for arguments in (
        ("eval", "--nope"),
        ("train", "shapes_tiny", "--train.iteration", "5"),
        ("demo", "--minutes", "x"),
    ):
        assert alignmask_(*arguments) == 2
        assert alignmask_.out == ""
        assert arguments[-2 if arguments[0] != "eval" else -1] in alignmask_.err


def test_ctrl_c_in_training_saves_and_exits_with_130(
    alignmask_: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignmask.train.trainer import Trainer

    step = Trainer.train_step

    def interrupted(self: Trainer, batches: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert alignmask_(*train_arguments(tmp_path, iterations=100)) == 130
    assert "alignmask: stopped after iteration 1; the same command continues the run" in alignmask_.err
    assert checkpoint.latest(tmp_path / "run").name == "step_0000001"


# -- eval ----------------------------------------------------------------------------------------------------------------


def numbers(text: str, row: str) -> list[str]:
    """What stands after the first words of the first line that begins with them."""
    line = next(line for line in text.splitlines() if line.split()[: len(row.split())] == row.split())
    return line.split()[len(row.split()) :]


def test_eval_of_a_checkpoint_repeats_the_runs_own(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    run = workshop / "run"
    assert alignmask_("eval", run, "--workers", 0, "--batch-size", 2, "--out", tmp_path / "new", "--per-category") == 0
    assert "mask AP (%), 3 images" in alignmask_.out
    for words in ("class*mask", "PCC*", "triangle"):
        assert words in alignmask_.out
    for name in ("evaluation.json", "results.json"):
        assert (tmp_path / "new" / name).read_text() == (run / name).read_text()
    assert alignmask_("eval", checkpoint.latest(run), "--workers", 0, "--engine", "pycocotools") == 0


def test_eval_of_other_data(workshop: Path, alignmask_: Terminal) -> None:
    shapes = workshop / "shapes"
    files = ("--data-images", shapes / "train", "--annotations", shapes / "instances_train.json")
    assert alignmask_("eval", workshop / "run", "--workers", 0, *files) == 0
    assert "mask AP (%), 8 images" in alignmask_.out


def test_eval_of_a_results_file(alignmask_: Terminal, tmp_path: Path) -> None:
    world = small_world()
    annotations, results = write(world, tmp_path)
    assert alignmask_("eval", "--results", results, "--annotations", annotations, "--out", tmp_path) == 0
    written = json.loads((tmp_path / "evaluation.json").read_text())
    metrics = written["modes"]["score"]["metrics"]
    assert numbers(alignmask_.out, "score 2 %")[0] == "10"
    assert numbers(alignmask_.out.split("APl")[1], "score")[0] == f"{100 * metrics['AP']:.1f}"
    assert max(map(len, alignmask_.out.splitlines())) <= 80


def test_warnings_are_one_line(alignmask_: Terminal, tmp_path: Path) -> None:
    world = small_world()
    world.annotate(7, 3, np.zeros((40, 60), bool), segmentation=[[1, 1, 2, 2]])
    annotations, results = write(world, tmp_path)
    entries = [*world.results, {**world.results[0], "image_id": 1}]
    results.write_text(json.dumps(entries))
    arguments = ("eval", "--results", results, "--annotations", annotations)
    assert alignmask_(*arguments, "--ignore-unknown") == 0
    lines = [line for line in alignmask_.err.splitlines() if line]
    assert all(line.startswith("alignmask: warning: ") for line in lines), alignmask_.err
    assert any(line.endswith("results.json: left out 1 of an unknown image") for line in lines)


def test_eval_mistakes(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    annotations, results = write(small_world(), tmp_path)
    run, shapes = workshop / "run", workshop / "shapes"
    complaint = alignmask_.complaint
    assert "give either a CHECKPOINT or --results FILE" in complaint("eval")
    assert "give either a CHECKPOINT or --results FILE" in complaint("eval", run, "--results", results)
    assert "give --annotations FILE" in complaint("eval", "--results", results)
    assert "or neither of them" in complaint("eval", run, "--annotations", annotations)
    assert f"{tmp_path}/none.json: cannot be read" in complaint(
        "eval", "--results", tmp_path / "none.json", "--annotations", annotations
    )
    assert f"{tmp_path}/none.json: cannot read" in complaint(
        "eval", "--results", results, "--annotations", tmp_path / "none.json"
    )
    results.write_text("[{")
    assert "results.json: not valid JSON" in complaint("eval", "--results", results, "--annotations", annotations)
    assert "no such file or folder" in complaint("eval", tmp_path / "nowhere")
    assert "neither a checkpoint nor a run" in complaint("eval", shapes)
    assert "device 'gpu' cannot be used" in complaint("eval", run, "--device", "gpu")
    write(small_world(), tmp_path)
    small_world().write(tmp_path, images=True)
    text = complaint("eval", run, "--data-images", tmp_path, "--annotations", annotations)
    assert "its 2 categories (cat, dog) are not the 6 that the checkpoint was trained on (circle, square, " in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells of a missing GPU")
def test_a_gpu_that_is_not_there(workshop: Path, alignmask_: Terminal) -> None:
    assert "device 'cuda' cannot be used: " in alignmask_.complaint("eval", workshop / "run", "--device", "cuda")


# -- predict -------------------------------------------------------------------------------------------------------------


def photo(path: Path, size: tuple[int, int] = (50, 70)) -> Path:
    height, width = size
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels_HWC = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels_HWC).save(path)
    return path


def test_predict_writes_pictures_and_coco_json(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.jpg", (50, 70))
    photo(tmp_path / "in" / "b.PNG", (64, 40))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "folder.png").mkdir()
    other = photo(tmp_path / "other" / "a.bmp", (33, 35))
    out = tmp_path / "new" / "out"
    assert alignmask_("predict", workshop / "run", tmp_path / "in", other, "--out", out, "--threshold", 0) == 0
    assert sorted(file.name for file in out.iterdir()) == ["1_a.png", "2_b.png", "3_a.png", "predictions.json"]
    entries = json.loads((out / "predictions.json").read_text())
    assert alignmask_.out == f"{len(entries)} instances in 3 images: pictures and predictions.json in {out}\n"
    assert {entry["image_id"] for entry in entries} == {1, 2, 3}
    files = {1: tmp_path / "in" / "a.jpg", 2: tmp_path / "in" / "b.PNG", 3: other}
    predictor = alignmask.load(workshop / "run")
    for image_id, file in files.items():
        mine = [entry for entry in entries if entry["image_id"] == image_id]
        assert {entry["file_name"] for entry in mine} == {str(file)}
        expected = predictor.predict(file)
        assert len(mine) == len(expected) > 0
        for k, entry in enumerate(mine):
            np.testing.assert_array_equal(
                mask_utils.decode(entry["segmentation"]).astype(bool), expected.masks[k].numpy()
            )
            assert entry["score"] == pytest.approx(float(expected.scores[k]))
            assert entry["category_id"] == predictor.category_ids[expected.labels[k]]
        with (
            Image.open(file) as image,
            Image.open(out / predict_command.picture_names(list(files.values()))[image_id - 1]) as picture,
        ):
            assert picture.width % image.width == 0
            assert picture.width * image.height == picture.height * image.width
            assert max(picture.size) >= 512


def test_predict_keeps_confident_instances_alone(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    file = photo(tmp_path / "a.jpg")
    scores = alignmask.load(workshop / "run").predict(file).scores
    threshold = float(scores[len(scores) // 2])
    assert alignmask_("predict", workshop / "run", file, "--out", tmp_path / "out", "--threshold", threshold) == 0
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(entries) == int((scores >= threshold).sum()) < len(scores)
    assert alignmask_("predict", workshop / "run", file, "--out", tmp_path / "out", "--threshold", 1) == 0
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
    assert alignmask_.out.startswith("0 instances in 1 image: ")


def test_predict_goes_on_after_a_corrupt_image_and_names_it(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    good = photo(tmp_path / "in" / "good.jpg", (300, 300))
    (tmp_path / "in" / "cut.jpg").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    assert alignmask_("predict", workshop / "run", tmp_path / "in", "--out", tmp_path / "out") == 2
    assert re.search(r"^\d+ instances in 1 image: ", alignmask_.out)
    assert "alignmask: 2 images could not be read:\n" in alignmask_.err
    assert f"{tmp_path}/in/cut.jpg: cannot decode the image: " in alignmask_.err
    assert f"{tmp_path}/in/empty.png: no image file" in alignmask_.err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["good.png", "predictions.json"]
    text = alignmask_.complaint("predict", workshop / "run", tmp_path / "in" / "empty.png", "--out", tmp_path / "out")
    assert text.startswith(f"{tmp_path}/in/empty.png: no image file")


def test_predict_mistakes(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    run, file = workshop / "run", photo(tmp_path / "a.jpg")
    complaint = alignmask_.complaint
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path}/b.jpg: no such file or folder" in complaint("predict", run, file, tmp_path / "b.jpg")
    assert f"no image files in {tmp_path}/empty: none that ends in .bmp, " in complaint(
        "predict", run, tmp_path / "empty"
    )
    assert "no image files given" in complaint("predict", run)
    assert "checkpoint nowhere: no such file or folder" in complaint("predict", "nowhere", file)
    assert "--threshold: expected 0 to 1, got 50.0" in complaint("predict", run, file, "--threshold", 50)
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file" in complaint("predict", run, file, "--out", tmp_path / "file")


@pytest.mark.parametrize("damage", ["weights", "config", "meta", "other weights"])
def test_a_corrupt_checkpoint_is_named(workshop: Path, alignmask_: Terminal, tmp_path: Path, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(workshop / "run" / "best", broken)
    if damage == "weights":
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        expected = f"checkpoint file {weights} cannot be read: "
    elif damage == "config":
        (broken / "config.json").write_text('{"name": 5}')
        expected = f"{broken}/config.json: "
    elif damage == "meta":
        (broken / "meta.json").write_text("{}")
        expected = f"checkpoint file {broken}/meta.json: expected a list class_names of 6 entries"
    else:
        config = json.loads((broken / "config.json").read_text())
        config["model"]["query_decoder"]["queries"] = 7
        (broken / "config.json").write_text(json.dumps(config))
        expected = f"checkpoint {broken} does not fit its own config.json: "
    assert alignmask_.complaint("predict", broken, photo(tmp_path / "a.jpg"), "--out", tmp_path / "o").startswith(
        expected
    )


def test_picture_names_and_image_ids() -> None:
    files = [Path("x/a.jpg"), Path("y/a.png"), Path("y/b.png")]
    assert predict_command.picture_names(files) == ["1_a.png", "2_a.png", "3_b.png"]
    assert predict_command.image_ids(files) == [1, 2, 3]
    assert predict_command.image_ids([Path("000139.jpg"), Path("285.png")]) == [139, 285]
    assert predict_command.image_ids([Path("000139.jpg"), Path("139.png")]) == [1, 2]
    assert predict_command.image_ids([Path("139.jpg"), Path("b.png")]) == [1, 2]
    assert len(set(predict_command.picture_names([Path("x/a.jpg"), Path("y/a.png"), Path("1_a.png")]))) == 3


# -- demo ----------------------------------------------------------------------------------------------------------------


def test_demo_from_nothing_to_pictures(alignmask_: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_recipe(tmp_path)
    monkeypatch.setattr("alignmask.commands.demo.shapes_tiny", lambda: config)
    assert alignmask_("demo", "--minutes", "0.01", "--out", tmp_path / "demo") == 0
    pictures = re.findall(r"^[\w ]+: (.*\.png)$", alignmask_.out, re.MULTILINE)
    assert len(pictures) == 3
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 100
    assert "mask AP (%), 3 images" in alignmask_.out
    assert f"alignmask predict {tmp_path / 'demo' / 'run'} " in alignmask_.out


def tiny_recipe(folder: Path) -> Any:
    """The config that the tiny command line makes."""
    caught: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "run", lambda config, **_: caught.append(config) or 0)
        assert cli.main(train_arguments(folder, iterations=3)) == 0
    return caught[0]


def test_demo_mistakes(alignmask_: Terminal) -> None:
    assert "--minutes: expected more than 0, got -1" in alignmask_.complaint("demo", "--minutes", "-1")


# -- the end of a command ------------------------------------------------------------------------------------------------


def test_unknown_command(alignmask_: Terminal) -> None:
    assert alignmask_.complaint("trian") == f"unknown command 'trian': expected one of {', '.join(cli.COMMANDS)}"


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "alignmask: interrupted"),
        (ValueError("so and so"), 2, "alignmask: so and so"),
        (FileNotFoundError(2, "No such file", "x.json"), 2, "alignmask: [Errno 2] No such file: 'x.json'"),
        (ValueError(), 2, "alignmask: ValueError"),
        (FloatingPointError("loss is not finite"), 2, "alignmask: loss is not finite"),
    ],
)
def test_exit_codes(
    alignmask_: Terminal, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, line: str
) -> None:
    def fail(_: list[str]) -> int:
        raise raised

    monkeypatch.setattr("alignmask.commands.info.main", fail)
    assert alignmask_("info") == code
    assert alignmask_.err.strip() == line
    monkeypatch.setenv("ALIGNMASK_DEBUG", "1")
    assert alignmask_("info") == code
    assert ("Traceback" in alignmask_.err) == (code == 2)


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[str]) -> int:
        raise TypeError("ours")

    monkeypatch.setattr("alignmask.commands.info.main", fail)
    with pytest.raises(TypeError):
        cli.main(["info"])


def test_devices() -> None:
    assert commands.choose_device("cpu") == torch.device("cpu")
    assert commands.choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device 'cpus' cannot be used"):
        commands.choose_device("cpus")


def test_as_a_program_with_ctrl_c(workshop: Path) -> None:
    """The one test that starts the program itself: Ctrl-C while it loads or predicts ends it with 130, in one line."""
    images = workshop / "many"
    for k in range(400):
        photo(images / f"{k}.png", (60, 60 + k % 7))
    command = [
        sys.executable,
        "-m",
        "alignmask.cli",
        "predict",
        workshop / "run",
        images,
        "--out",
        workshop / "stopped",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 90
        while not list((workshop / "stopped").glob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "alignmask: interrupted"
    assert "Traceback" not in err
