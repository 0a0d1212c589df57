"""How a run begins and ends: which weights the backbone starts from, and which checkpoints are
written."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest

from alignmask import config as settings
from alignmask import recipes
from alignmask.config import DataConfig, ModelConfig
from alignmask.data import CocoDataset
from alignmask.model import AlignMask, build_model
from alignmask.training import trainer
from alignmask.training.checks import describe_data
from alignmask.training.log import Log
from alignmask.training.trainer import Trainer, train
from tests import tiny
from tests.data.coco_files import annotation, box_polygon, image_record, write_coco
from tests.pretrained.heads import head, saved, with_rows
from tests.training.runs import config


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool | str]:
    """What the model's backbone was to start from. It is built without ImageNet weights all the
    same."""
    seen: list[bool | str] = []

    def build(model: ModelConfig) -> AlignMask:
        seen.append(model.backbone.pretrained)
        return build_model(replace(model, backbone=replace(model.backbone, pretrained=False)))

    monkeypatch.setattr(trainer, "build_model", build)
    return seen


def test_the_backbone_starts_from_imagenet_unless_the_run_has_other_weights(
    shapes: DataConfig, tmp_path: Path, asked: list[bool | str]
) -> None:
    first = config(shapes, tmp_path, "first", iterations=1)
    first = replace(
        first, model=replace(first.model, backbone=replace(first.model.backbone, pretrained=True))
    )
    run = train(first)
    assert asked == [True]
    Trainer(replace(first, name="second", train=replace(first.train, init_from=run)))
    assert asked == [True, False]


def test_a_run_matches_the_classes_of_its_data(
    shapes: DataConfig,
    tmp_path: Path,
) -> None:
    first = config(shapes, tmp_path, "first")
    names = Trainer(first).train_data.class_names
    reverse = [names[5], "another", *names[3::-1]]
    source = saved(with_rows(6, aligned_queries=tiny.ALIGNED), reverse, tmp_path / "source")
    trainer = Trainer(config(shapes, tmp_path, "second", init_from=source))
    after = head(trainer.accelerator.unwrap_model(trainer.model))
    assert after[[0, 1, 2, 3, 5], 0].tolist() == [6, 5, 4, 3, 1]
    assert after[4, -1] == pytest.approx(-4.595, abs=1e-3)  # of a new head: probability 0.01
    said = "\n".join(trainer.introduction())
    taken = [name for name in names if name != names[4]]
    assert f"weights of {source}: classes taken by name: 5 ({', '.join(taken)})" in said
    assert f"classes that start anew: 1 ({names[4]})" in said


def test_a_run_without_iterations_leaves_a_checkpoint(shapes: DataConfig, tmp_path: Path) -> None:
    run = train(config(shapes, tmp_path, iterations=0))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_0000000"]
    assert (run / "evaluation.json").exists()


def test_a_finished_run_says_so(
    shapes: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = config(shapes, tmp_path, iterations=1)
    run = train(done)
    said = capsys.readouterr().err
    assert "is finished" not in said
    assert "mask AP (%), " in said
    train(done)
    words = f"run {run} is finished: 1 iteration; raise --train.{{}} to go on; "
    assert words.format("iterations") in capsys.readouterr().err
    longer = replace(done, train=replace(done.train, iterations=2))
    train(replace(longer, train=replace(longer.train, max_minutes=1e-9)))
    assert words.format("max-minutes") in capsys.readouterr().err
    train(longer)
    said = capsys.readouterr().err
    assert (
        f"run {run} continues at iteration 1, with other settings: train.iterations: 1 -> 2; "
        in said
    )


def test_a_finished_run_is_not_written_again(shapes: DataConfig, tmp_path: Path) -> None:
    done = config(shapes, tmp_path, iterations=1)
    run = train(done)

    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} | {
            run / name: (run / name).stat().st_mtime_ns
            for name in ("results.json", "evaluation.json")
        }

    before = written()
    assert train(done) == run
    assert written() == before


def test_the_bar_moves_on_the_main_process_alone(tmp_path: Path) -> None:
    with Log(tmp_path, 2, 10) as log:
        assert log.progress.tasks[0].completed == 2
        log.advance(5)
        assert log.progress.tasks[0].completed == 5
    with Log(tmp_path / "other", 2, 10, active=False) as log:
        log.advance(5)
        log.metrics(5, {"loss": 1.0})
    assert not (tmp_path / "other").exists()


def test_settings_cannot_be_changed_in_place() -> None:
    """A run's folder holds the settings that it began with."""
    classes = [value for value in vars(settings).values() if dataclasses.is_dataclass(value)]
    assert len(classes) >= 10
    assert all(value.__dataclass_params__.frozen for value in classes)


def test_images_with_more_instances_than_queries_are_counted(tmp_path: Path) -> None:
    """In one of the sentences of the start; as many as there are queries is no more."""
    small = recipes.own_small()
    instances = [annotation(n, 1 + n // 101) for n in range(101 + 100)]  # 101 of one image, 100
    images, path = write_coco(tmp_path, [image_record(1), image_record(2)], instances)
    data = CocoDataset(images, path)
    *_, sentence = describe_data(small, data, data)
    assert sentence.startswith(
        "1 of 2 training images have more instances (up to 101) than the model has queries (100)"
    )
    assert sum("than the model has queries" in s for s in describe_data(small, data, data)) == 1
    for recipe in (recipes.nuclei_many(), recipes.nuclei_small()):  # tiles show parts of images
        sentences = describe_data(recipe, data, data)
        assert not any("than the model has queries" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("side", "shown", "tile"),
    [(16, (256, 256), 128), (19, (256, 256), 160), (20, (256, 256), None), (30, (512, 700), 256)],
)
def test_small_objects_are_told_of_with_a_tile(
    side: int, shown: tuple[int, int], tile: int | None, tmp_path: Path
) -> None:
    """Two of three have that side; images are resized to a short side of 256 pixels."""
    instances = [
        annotation(n, segmentation=box_polygon(10, 10, 10 + s, 10 + s))
        for n, s in enumerate((side, side, 100))
    ]
    images, path = write_coco(tmp_path, [image_record(1, *shown)], instances)
    data = CocoDataset(images, path)
    assert data.instance_sizes_N3.tolist() == [[s, *shown] for s in (side, side, 100)]
    recipe = recipes.own_small()
    found = [s for s in describe_data(recipe, data, data) if "such masks are coarse" in s]
    assert len(found) == (tile is not None)
    if tile is None:
        return
    seen = round((side * 256 / shown[0]) ** 2)
    assert found[0].startswith(f"half of the training instances have {seen} pixels or fewer when")
    assert found[0].endswith(f"--data.tile {tile} would enlarge them")
    with_tile = replace(recipe, data=replace(recipe.data, tile=tile))
    assert not any("masks are coarse" in s for s in describe_data(with_tile, data, data))
