"""What may differ between a run and its continuation, and what a checkpoint brings back."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import alignmask
from alignmask import checkpoint
from alignmask.config import Config, DataConfig
from alignmask.config_files import changed_fields
from alignmask.data import resolve_paths
from alignmask.recipes import shapes_tiny
from alignmask.training import memory as memory_module
from alignmask.training.dry_run import dry_run
from alignmask.training.log import last_evaluation
from alignmask.training.memory import peak_memory
from alignmask.training.run_folder import RunFolder
from alignmask.training.signals import StopSignals
from alignmask.training.trainer import Trainer, train
from tests.covers import covers
from tests.training.runs import RecordingTrainer, assert_equal, config, lines

# Neither changes what is learned.
MAY_DIFFER = {"data.workers", "model.score"}
# All others of this section may: a longer run, another learning rate.
MUST_STAY = {"train.seed", "train.init_from", "train.freeze_backbone", "train.layer_decay"}


def with_one_change(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The name of every field of a config, and the config with something else there."""
    for field in dataclasses.fields(values):
        name, value = f"{prefix}{field.name}", getattr(values, field.name)
        if dataclasses.is_dataclass(value):
            for inner, changed in with_one_change(value, f"{name}."):
                yield inner, replace(values, **{field.name: changed})
        else:
            yield name, replace(values, **{field.name: "something else"})


def test_a_continued_run_has_the_configuration_of_before(
    shapes: DataConfig, tmp_path: Path
) -> None:
    trainer = Trainer(config(shapes, tmp_path))
    trainer.save()
    refused, accepted = set(), set()
    for name, changed in with_one_change(trainer.config):
        if name in ("name", "out"):
            continue
        try:
            assert RunFolder(changed).begin(True, trainer.accelerator, {}) is not None
        except ValueError as error:
            if f"{name}: " in str(error):
                refused.add(name)
        else:
            accepted.add(name)
    assert len(accepted) + len(refused) == len(list(with_one_change(trainer.config))) - 2
    assert accepted - MAY_DIFFER == {name for name in accepted if name.startswith("train.")}
    assert refused >= MUST_STAY
    assert {name for name in refused if name.startswith("train.")} == MUST_STAY
    assert accepted >= MAY_DIFFER
    assert len(accepted) == 25
    assert len(refused) > 60


def renamed(data: DataConfig, folder: Path, classes: dict[int, str]) -> DataConfig:
    """The same images and annotations as files; some classes have other names."""
    data = replace(resolve_paths(data), shapes=None)
    changed = {}
    for name in ("train_annotations", "val_annotations"):
        source = getattr(data, name)
        coco = json.loads(source.read_text())
        for category in coco["categories"]:
            category["name"] = classes.get(category["id"], category["name"])
        changed[name] = folder / source.name
        changed[name].write_text(json.dumps(coco))
    return replace(data, **changed)


def test_a_run_is_not_continued_with_other_classes(shapes: DataConfig, tmp_path: Path) -> None:
    """Nor with the same ones in another order, whose rows of the class head would be swapped."""
    data = renamed(shapes, tmp_path, {})
    names = [c["name"] for c in json.loads(data.train_annotations.read_text())["categories"]]
    trainer = Trainer(config(data, tmp_path))
    trainer.save()
    meta = checkpoint.load_meta(checkpoint.latest(trainer.run_dir))
    assert (meta["class_names"], meta["category_ids"]) == (names, [1, 2, 3, 4, 5, 6])
    renamed(shapes, tmp_path, {2: names[2], 3: names[1]})
    swapped = [names[0], names[2], names[1], *names[3:]]
    with pytest.raises(ValueError, match="was begun with other classes") as refused:
        Trainer(config(data, tmp_path))
    text = str(refused.value)
    assert f"class_names were {names}, now {swapped} (number 2 is the first to differ)" in text
    assert "--name, or --no-resume to start it anew" in text
    assert f"--train.init-from {trainer.run_dir}" in text
    assert Trainer(config(data, tmp_path, "other")).step == 0
    again = Trainer(config(data, tmp_path), resume=False)
    again.step = 1
    again.save()
    assert Trainer(config(data, tmp_path)).step == 1


def test_a_run_is_not_continued_with_other_category_ids(tmp_path: Path) -> None:
    """Of long lists, the part around the first difference is shown."""
    folder, ids = RunFolder(Config("run", tmp_path)), list(range(1, 81))
    classes = {"class_names": [str(i) for i in ids], "category_ids": ids}
    checkpoint.save(tmp_path / "run/checkpoints/step_0000001", folder.config, {}, {"step": 1})
    accelerator = Accelerator()
    assert folder.begin(True, accelerator, classes) is not None  # of before classes were noted
    meta = {"step": 2, **classes}
    checkpoint.save(tmp_path / "run/checkpoints/step_0000002", folder.config, {}, meta)
    assert folder.begin(True, accelerator, classes) is not None
    moved = {**classes, "category_ids": [*ids[:76], 90, *ids[77:]]}
    words = (
        r"category_ids were \[\.\.\., 74, 75, 76, 77, 78, 79, 80\], "
        r"now \[\.\.\., 74, 75, 76, 90, 78, 79, 80\] \(number 77"
    )
    with pytest.raises(ValueError, match=words):
        folder.begin(True, accelerator, moved)
    fewer = {"class_names": classes["class_names"][:20], "category_ids": ids[:20]}
    words = r"class_names were \[\.\.\., '18', '19', '20', '21', '22', '23', '24', \.\.\.\], now \[\.\.\., '18', '19', '20'\]"
    with pytest.raises(ValueError, match=words):
        folder.begin(True, accelerator, fewer)


def test_changed_fields_name_both_values() -> None:
    old = shapes_tiny()
    new = replace(
        old,
        name="other",
        loss=replace(old.loss, points=7),
        model=replace(old.model, aligned_queries=None),
    )
    assert changed_fields(old, old) == []
    found = changed_fields(old, new)
    assert [change.name for change in found] == ["name", "model.aligned_queries", "loss.points"]
    assert str(found[0]) == "name: shapes_tiny -> other"
    assert str(found[1]).endswith(" -> None")
    assert [str(change) for change in changed_fields(old, new, may_differ=("name", "loss"))][
        1:
    ] == ["loss.points: 512 -> 7"]


def test_a_checkpoint_brings_everything_back(recorded: RecordingTrainer) -> None:
    again = RecordingTrainer(recorded.config)
    assert (again.step, again.elapsed) == (8, recorded.elapsed)
    assert again.elapsed > 0
    assert_equal(again.model.state_dict(), recorded.model.state_dict())
    assert_equal(again.ema.module.state_dict(), recorded.ema.module.state_dict())
    before, now = (trainer.optimizer.state_dict()["state"] for trainer in (recorded, again))
    assert before.keys() == now.keys()
    for number, moments in before.items():
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(moments[name], now[number][name])
    assert before[0]["step"] == 8
    assert last_evaluation(recorded.run_dir) == 8


def test_a_checkpoint_brings_the_loss_scale_back(shapes: DataConfig, tmp_path: Path) -> None:
    trainers = [Trainer(config(shapes, tmp_path, name)) for name in ("one", "other")]
    for trainer, scale in zip(trainers, (8.0, 2.0), strict=True):
        trainer.accelerator.scaler = torch.amp.GradScaler(
            "cpu", init_scale=scale, growth_interval=77
        )
        trainer.accelerator.scaler.scale(torch.ones(()))  # it is made by its first use
    trainers[0].save()
    trainers[1].load(checkpoint.latest(trainers[0].run_dir))
    assert trainers[1].accelerator.scaler.get_scale() == 8.0


def test_checkpoints_can_be_read_by_others(recorded: RecordingTrainer) -> None:
    folder = checkpoint.latest(recorded.run_dir)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o644}
    assert {file.name for file in folder.iterdir()} == {
        "model.safetensors", "ema.safetensors", "state.pt", "config.json", "meta.json", "checksums.json"
    }  # fmt: skip


def test_a_dry_run_takes_the_steps_of_the_run(
    shapes: DataConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    settings = config(shapes, tmp_path, iterations=3, log_every=1, seed=4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    dry_run(settings, steps=2)
    out = capsys.readouterr().out
    assert "5.0 M parameters, batch 2, crop 64, float32 on cpu" in out
    assert re.search(
        r"^peak memory: [0-9.]+ GiB\nthe whole run: about 0.0 hours for 3 it", out, re.M
    )
    printed = [line.split() for line in out.splitlines() if line.startswith("step ")]
    monkeypatch.setattr(Trainer, "evaluate", lambda self: None)
    logged = lines(train(settings))
    assert [words[1] for words in printed] == ["1:", "2:"]
    for words, line in zip(printed, logged[:2], strict=True):
        shown = dict(zip(words[4::2], map(float, words[5::2]), strict=True))
        assert shown.keys() == line.keys() - {"step", "time", "lr", "it_per_s"}
        assert shown == pytest.approx({name: line[name] for name in shown}, rel=1e-3)


def test_the_peak_of_memory_is_seen_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with peak_memory() as nothing:
        pass
    with peak_memory() as peak:
        large = torch.ones(2**26)  # 256 MiB
        time.sleep(0.05)
        del large
    assert 2**27 < peak.bytes - nothing.bytes < 2**29


GIB = 2**30


def made_memory(
    monkeypatch: pytest.MonkeyPatch, free: float, peak: Callable[[int], float]
) -> list[int]:
    """A machine without a GPU with so many GiB free, 0.45 in use, and steps that take `peak` of the
    number of images. Returns the numbers that are tried, as they come."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    memory = SimpleNamespace(
        Process=lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=int(0.45 * GIB))),
        virtual_memory=lambda: SimpleNamespace(available=int(free * GIB)),
    )
    tried: list[int] = []

    def peak_of_steps(trainer: Trainer) -> int:
        tried.append(trainer.config.train.images_per_step)
        return int(peak(tried[-1]) * GIB)

    monkeypatch.setattr(memory_module, "psutil", memory)
    monkeypatch.setattr(memory_module, "_peak_of_steps", peak_of_steps)
    return tried


@pytest.mark.parametrize(
    ("free", "message"),
    [
        (100, None),
        (12, "4 images at a time need about 10.0 GiB, and 8.1 GiB are .*--train.accumulate 4 "
             r"\(2 images at a time, about 6.0 GiB\)"),
        (8, r"The same batch in parts: --train.accumulate 8 \(1 image at a time, about 4.0 GiB\)"),
        (5, "Even one image does not fit: reduce --data.crop"),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_fit_is_not_tried(
    shapes: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free: float,
    message: str | None,
) -> None:
    """One image takes 4 GiB, each further one 2 GiB; half a GiB is in use."""
    tried = made_memory(monkeypatch, free - 3.5, lambda images: 2 + 2 * images)
    settings = config(shapes, tmp_path, batch_size=8, accumulate=2, max_minutes=None)
    if message is None:
        dry_run(settings, steps=1)
        assert "of the memory is 10.0 GiB" in " ".join(capsys.readouterr().out.split())
    else:
        with pytest.raises(ValueError, match=message):
            dry_run(settings, steps=1)
        assert "step" not in capsys.readouterr().out
    assert tried == [1, 2]


@pytest.mark.parametrize(
    ("free", "peak", "expected", "tried"),
    [
        # 0.45 + 0.9 x 10 GiB; seven images take 9, eight 10.
        (10, lambda n: 2 + n, 7, [1, 2, 4, 7]),
        (100, lambda n: 2 + n, 8, [1, 2, 4, 8]),  # all that there are
        (10, lambda n: 2.0, 8, [1, 2, 4, 8]),
        # Larger batches take more than the first ones let expect: 4 of them 9 GiB, 5 of them 13.5.
        (10, lambda n: 1 + n * n / 2, 4, [1, 2, 4]),
        (8, lambda n: 2 + 2 * max(0, n - 2), 4, [1, 2, 4]),
        (6, lambda n: 2 + 2 * max(0, n - 2), 3, [1, 2, 4, 3]),  # 4 was one too many
        (2, lambda n: 1 + n, 1, [1, 2]),
    ],
)  # fmt: skip
@covers("train.batch_size")
def test_the_largest_batch_that_fits_is_found(
    shapes: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free: float,
    peak: Callable[[int], float],
    expected: int,
    tried: list[int],
) -> None:
    found = made_memory(monkeypatch, free, peak)
    settings = config(shapes, tmp_path, batch_size="auto", accumulate=2)
    assert memory_module.with_batch_size(settings, resume=True).train.batch_size == 2 * expected
    assert found == tried
    assert peak(expected) <= 0.45 + 0.9 * free
    assert expected == 8 or peak(expected + 1) > 0.45 + 0.9 * free


@covers("train.batch_size")
def test_a_run_keeps_the_batch_size_that_it_found(
    shapes: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is continued with another memory, and with a number of its own only if one is given."""
    monkeypatch.setattr(Trainer, "evaluate", lambda self: None)
    settings = config(
        shapes, tmp_path, batch_size="auto", iterations=1, scale_learning_rate_from=16
    )
    tried = made_memory(monkeypatch, 4.5, lambda images: 2 + images / 2)
    run = alignmask.train(settings)
    said = " ".join(capsys.readouterr().out.split())
    assert "batch_size auto: 4. 4 images at a time took 4.0 GiB of 4.5; the learn" in said
    assert "rate is 0.00025" in said  # a quarter of that for 16 images
    assert checkpoint.load_config(run).train.batch_size == 4
    made_memory(monkeypatch, 100, lambda images: 1.0)
    longer = replace(settings, train=replace(settings.train, iterations=2))
    assert checkpoint.load_config(alignmask.train(longer)).train.batch_size == 4
    assert tried == [1, 2, 4]
    assert "auto" not in capsys.readouterr().out
    again = alignmask.train(longer, resume=False)
    assert checkpoint.load_config(again).train.batch_size == 8


def test_a_batch_is_not_found_where_nothing_fits(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(shapes, tmp_path, batch_size="auto")
    made_memory(monkeypatch, 2, lambda images: 3.0)
    with pytest.raises(ValueError, match=r"one image takes 3.0 GiB, and 2.2 .*--data.crop"):
        alignmask.train(settings)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="auto is for one process"):
        alignmask.train(settings)
    with pytest.raises(ValueError, match=r"train.batch_size: expected a number"):
        Trainer(settings)


def test_a_dry_run_finds_the_batch_that_fits(
    shapes: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tried = made_memory(monkeypatch, 2, lambda images: images)
    dry_run(config(shapes, tmp_path, batch_size="auto"), steps=1)
    out = " ".join(capsys.readouterr().out.split())
    assert "auto: 2. 2 images at a time" in out
    assert "batch 2, crop 64" in out
    assert tried == [1, 2]


def test_steps_without_room_on_the_gpu_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(config: Config, resume: bool) -> Trainer:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(memory_module, "Trainer", full)
    assert memory_module._try(Config()) == math.inf


def test_processes_that_share_a_machine_are_not_probed(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "_peak_of_steps", pytest.fail)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert memory_module.check_memory(config(shapes, tmp_path, batch_size=8)) == ""


def test_a_run_with_a_time_limit_says_how_far_it_gets(
    shapes: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(shapes, tmp_path, iterations=10**5, max_minutes=0.1)
    dry_run(settings, steps=1)
    assert re.search(r"train.max_minutes after 0.1 minutes, at about\s+iteration [0-9]+ of 100000",
                     capsys.readouterr().out)  # fmt: skip


def test_a_second_signal_interrupts_and_handlers_come_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for first, second in ((signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)):
        signals = StopSignals()
        with signals:
            assert not signals.requested
            os.kill(os.getpid(), first)
            assert signals.requested
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), second)
        assert {number: signal.getsignal(number) for number in before} == before


def test_runs_that_are_put_aside_in_one_second_keep_names_of_their_own(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    for number in range(4):
        trainer = Trainer(config(shapes, tmp_path), resume=False)
        (trainer.run_dir / "mark").write_text(str(number))
    name = trainer.run_dir.name
    marks = {folder.name: (folder / "mark").read_text() for folder in tmp_path.iterdir()}
    assert marks == {f"{name}.now": "0", f"{name}.now_2": "1", f"{name}.now_3": "2", name: "3"}
