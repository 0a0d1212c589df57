"""A step that was not finite is kept, and repeated with a look at where that began."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignmask import checkpoint
from alignmask.config import DataConfig
from alignmask.training import non_finite
from alignmask.training import replay as replay_module
from alignmask.training.non_finite import free_folder, read_batches
from alignmask.training.replay import faults, replay, tensors_of
from alignmask.training.trainer import seed_of
from tests.commands.terminal import Terminal
from tests.training.runs import RecordingTrainer, assert_equal, config


def failed(trainer: RecordingTrainer) -> Path:
    """Runs it until it fails; returns the folder that its message names."""
    with pytest.raises(FloatingPointError) as error:
        trainer.run()
    (folder,) = re.findall(
        r"the step is kept: `alignmask replay (\S+)` repeats it$", str(error.value)
    )
    return Path(folder)


@pytest.fixture(scope="module")
def overflowed(shapes: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> RecordingTrainer:
    """The third iteration, of two micro-batches, meets a pixel that is infinite in its second."""
    settings = config(shapes, tmp_path_factory.mktemp("inf"), accumulate=2, seed=3, ema=0.5)
    trainer = RecordingTrainer(settings)
    batches = trainer.batches

    def spoiled() -> Any:
        for number, batch in enumerate(batches()):
            if number == 5:
                image_BCHW = batch.image_BCHW.float()
                image_BCHW[0, 1, 20, 30] = math.inf
                batch = replace(batch, image_BCHW=image_BCHW)
            yield batch

    trainer.batches = spoiled  # type: ignore[method-assign]
    assert failed(trainer) == trainer.run_dir / "non_finite_step_2"
    return trainer


def test_everything_of_the_step_is_kept(overflowed: RecordingTrainer) -> None:
    folder, step = overflowed.run_dir / "non_finite_step_2", overflowed.steps[2]
    kept = checkpoint.load_weights(folder)
    assert_equal(kept, {name: step.before[name] for name in kept})
    batches = read_batches(folder)
    assert len(batches) == len(step.batches) == 2
    for one, other in zip(batches, step.batches, strict=True):
        for field in fields(one):
            value, expected = getattr(one, field.name), getattr(other, field.name)
            assert value.equal(expected) if isinstance(value, Tensor) else value == expected
    meta = checkpoint.load_meta(folder)
    assert (meta["step"], meta["seed"]) == (2, seed_of(3, 2, 0))
    assert meta["error"].startswith(("loss is not finite", "matching: "))
    state = checkpoint.load_state(folder)
    moments = overflowed.optimizer.state_dict()["state"]
    assert state["optimizer"]["state"].keys() == moments.keys()
    assert state["optimizer"]["state"][0]["step"] == 2
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], moments[0]["exp_avg"])
    assert checkpoint.load_config(folder) == overflowed.config


def test_the_replay_finds_the_pixel(overflowed: RecordingTrainer) -> None:
    found = replay(overflowed.run_dir / "non_finite_step_2")
    assert found.weights == []
    size = 3 * 64 * 64
    assert found.inputs == [
        f"micro-batch 1: image_BCHW: 1 of {size} values, the first at [0, 1, 20, 30]: inf"
    ]
    first = found.modules[0]
    assert first.startswith("backbone.body.conv1.0 (FoldingConv): ")
    assert first.endswith("; its inputs neither")
    assert found.outputs[0].startswith("output 0: ")
    assert len(found.losses) == 1
    assert "non-finite costs" in found.losses[0]
    assert not found.is_finite


def test_the_replay_computes_the_same(
    overflowed: RecordingTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random points of both micro-batches, and the gradients of the first one."""
    states, step = [], overflowed.steps[2]
    build = replay_module.build_model

    def watched(model_config: Any) -> nn.Module:
        model = build(model_config)
        model.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
        return model

    monkeypatch.setattr(replay_module, "build_model", watched)
    replay(overflowed.run_dir / "non_finite_step_2")
    assert len(states) == len(step.generators) == 2
    assert all(one.equal(other) for one, other in zip(states, step.generators, strict=True))


def test_the_replay_finds_the_weight(shapes: DataConfig, tmp_path: Path) -> None:
    """An infinite weight of a layer that is used for losses only."""
    trainer = RecordingTrainer(config(shapes, tmp_path))
    with torch.no_grad():
        trainer.plain.pixel_decoder.fuse[0].weight[1, 2, 0, 0] = -math.inf
    found = replay(failed(trainer))
    shape = trainer.plain.pixel_decoder.fuse[0].weight.numel()
    assert found.weights == [
        f"pixel_decoder.fuse.0.weight: 1 of {shape} values, the first at [1, 2, 0, 0]: -inf"
    ]
    assert found.inputs == []
    assert found.modules[0].startswith("pixel_decoder.fuse.0 (Conv2d): ")
    assert found.modules[0].endswith("; its inputs were finite")


def test_the_replay_finds_a_gradient(shapes: DataConfig, tmp_path: Path) -> None:
    """The loss is finite, its gradient is not: 0 times that of a square root at 0."""

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + (0 * x).sqrt()

    trainer = RecordingTrainer(config(shapes, tmp_path))
    trainer.plain.backbone.body.layer4.add_module("root", Root())
    assert "root" in dict(trainer.plain.backbone.body.layer4.named_modules())
    folder = failed(trainer)
    assert checkpoint.load_meta(folder)["error"].startswith("gradient is not finite (norm nan)")
    build = replay_module.build_model

    def with_root(model_config: Any) -> nn.Module:
        model = build(model_config)
        model.backbone.body.layer4.add_module("root", Root())
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_module, "build_model", with_root)
        found = replay(folder)
    assert found.weights == found.inputs == found.modules == found.losses == []
    assert found.backward[0].startswith("Function 'MulBackward0' returned nan values")
    assert any("backbone" in line for line in found.backward[1:])
    assert all(line.startswith("backbone.body.") for line in found.gradients)
    assert any("layer4" in line for line in found.gradients)
    # Without that module nothing is wrong.
    assert "The step is finite here" in str(replay(folder))


def test_nothing_is_overwritten_and_processes_do_not_share(tmp_path: Path) -> None:
    assert free_folder(tmp_path, 7, 0, 1).name == "non_finite_step_7"
    (tmp_path / "non_finite_step_7").mkdir()
    assert free_folder(tmp_path, 7, 0, 1).name == "non_finite_step_7_2"
    assert free_folder(tmp_path, 7, 1, 2).name == "non_finite_step_7_process_1"


def test_a_full_disk_does_not_hide_the_error(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = RecordingTrainer(config(shapes, tmp_path))
    with torch.no_grad():
        trainer.plain.query_decoder.heads.classify.bias.fill_(math.nan)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    message = r"iteration 0: .*non-finite costs.*the step could not be kept: no space left"
    with pytest.raises(FloatingPointError, match=message):
        trainer.run()


def test_the_command(
    overflowed: RecordingTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(capsys)
    folder = overflowed.run_dir / "non_finite_step_2"
    assert terminal("replay", folder, "--device", "cpu") == 0
    lines = terminal.out.splitlines()
    assert lines[0].startswith("iteration 2: matching: image ")
    assert "weights before the step: finite" in lines
    assert "modules, in the order of the forward pass: not finite:" in lines
    assert re.search(r"^  \.\.\. and \d+ more$", terminal.out, re.MULTILINE)
    complaint = terminal.complaint("replay", checkpoint.latest(overflowed.run_dir) or tmp_path)
    assert "not a folder of a step that was not finite" in complaint
    assert json.loads((folder / "batch.json").read_text())[1]["image_ids"]


def test_faults_and_tensors() -> None:
    assert faults("x", torch.tensor([1, 2])) == faults("x", torch.tensor([1.0, 2.0])) == []
    value = torch.tensor([[1.0, math.nan], [-math.inf, 0.0]])
    assert faults("x", value) == ["x: 2 of 4 values, the first at [0, 1]: nan"]
    one = torch.ones(1)
    assert len(list(tensors_of([one, (one, {"a": one, "b": 3}), None]))) == 3


def test_the_micro_batch_whose_loss_is_not_finite_is_named() -> None:
    one, nothing = torch.tensor(1.0), torch.tensor(math.nan)
    good, bad = {"loss": one, "mask": one}, {"loss": nothing, "mask": one, "dice": nothing}
    non_finite.check([good, good], one)
    non_finite.check([good], None)
    with pytest.raises(non_finite.NotFinite, match=r"loss.*\(mask 1, dice nan\)$") as caught:
        non_finite.check([good, bad, good], nothing)
    assert caught.value.number == 1
    with pytest.raises(non_finite.NotFinite, match=r"loss"):
        non_finite.check([bad], None)
    with pytest.raises(non_finite.NotFinite, match=r"gradient.*\(norm inf\)$") as caught:
        non_finite.check([good, good], torch.tensor(math.inf))
    assert caught.value.number == 1
