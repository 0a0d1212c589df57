"""Checkpoints survive kills, load without executing code, and say what is wrong with a bad one."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import alignmask
from alignmask import checkpoint, recipes
from alignmask.config_files import config_from_dict, config_to_dict
from tests import tiny


@pytest.mark.parametrize("recipe", sorted(recipes.RECIPES))
def test_configs_survive_json(recipe: str) -> None:
    config = recipes.RECIPES[recipe]()
    assert config.name == recipe
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_config_errors_name_file_and_field() -> None:
    values = config_to_dict(recipes.shapes_tiny())
    with pytest.raises(ValueError, match=r"some\.json.*colour"):
        config_from_dict({**values, "colour": 1}, "some.json")
    with pytest.raises(ValueError, match=r"train\.batch_size"):
        config_from_dict({**values, "train": {**values["train"], "batch_size": "many"}})


CONFIG = recipes.shapes_tiny()
META = {"step": 3, "class_names": ["a", "b", "c", "d"], "category_ids": [1, 5, 7, 9]}


def save(folder: Path, value: float = 0.0, **more: object) -> None:
    checkpoint.save(folder, CONFIG, {"w": torch.full((3,), value)}, META, **more)


def test_a_failed_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints" / "step_0000003"
    save(folder, 1.0)

    def disk_full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "write_json", disk_full)
    with pytest.raises(OSError, match="no space"):
        save(folder, 2.0)
    assert checkpoint.load_weights(folder)["w"].tolist() == [1.0] * 3
    assert [p.name for p in folder.parent.iterdir()] == ["step_0000003"]


def test_a_kill_between_the_renames_leaves_a_usable_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "best", 1.0)
    rename, calls = os.rename, []

    def killed(*names: object) -> None:
        calls.append(names)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(*names)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "best", 2.0)
    assert checkpoint.load_weights(checkpoint.resolve(tmp_path))["w"][0] == 1.0


def test_what_kills_left_behind_is_removed_and_the_best_put_back(tmp_path: Path) -> None:
    steps = tmp_path / "checkpoints"
    save(tmp_path / "best", 1.0)
    save(steps / "step_0000003", 3.0)
    (tmp_path / "best").rename(tmp_path / ".best.old")
    for left in (".step_0000003.x8d_k2", ".step_0000002.old"):
        save(steps / left)
    save(tmp_path / ".best.a1b2")
    (tmp_path / ".config.json.q_2.part.json").touch()
    (tmp_path / ".mine").touch()
    checkpoint.tidy(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine", "best", "checkpoints"]
    assert [p.name for p in steps.iterdir()] == ["step_0000003"]
    assert checkpoint.load_weights(tmp_path / "best")["w"][0] == 1.0

    save(tmp_path / ".best.old", 2.0)  # the new one is there, so the old one goes
    checkpoint.tidy(tmp_path)
    assert checkpoint.load_weights(tmp_path / "best")["w"][0] == 1.0
    assert not (tmp_path / ".best.old").exists()


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path / "checkpoints" / f"step_{step:07d}")

    def killed(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("alignmask.checkpoint.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(tmp_path, 1)
    assert [p.name for p in (tmp_path / "checkpoints").glob("step_*")] == ["step_0000002"]


def test_latest_and_prune(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for step in (5, 10, 100):
        save(tmp_path / "checkpoints" / f"step_{step:07d}")
    checkpoint.prune(tmp_path, 2)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step_0000010",
        "step_0000100",
    ]
    assert checkpoint.latest(tmp_path).name == "step_0000100"


def test_the_moving_average_is_what_predicts(tmp_path: Path) -> None:
    save(tmp_path / "c", 1.0, ema={"w": torch.full((3,), 9.0)})
    assert checkpoint.load_weights(tmp_path / "c")["w"][0] == 9.0
    assert checkpoint.load_weights(tmp_path / "c", ema=False)["w"][0] == 1.0


def test_loading_executes_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    save(tmp_path / "c", state={})
    (tmp_path / "c" / "checksums.json").unlink()  # they are no protection against malice
    (tmp_path / "c" / "state.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load_state(tmp_path / "c")
    torch.save(Evil(), tmp_path / "c" / "state.pt")
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load_state(tmp_path / "c")
    assert not (tmp_path / "executed").exists()


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        alignmask.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="neither a checkpoint nor a run"):
        alignmask.load(tmp_path)
    save(tmp_path / "run" / "best")
    foreign = tmp_path / "run" / "model_final.pkl"  # it is not to stand for the run that it lies in
    foreign.write_bytes(b"weights")
    with pytest.raises(
        FileNotFoundError,
        match=r"not a file of a checkpoint.*alignmask convert .*model_final\.pkl DIR",
    ):
        alignmask.load(foreign)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "model.safetensors").touch()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "mask2former"}')
    with pytest.raises(
        ValueError, match=r"hf: not a checkpoint of AlignMask.*alignmask convert .*hf DIR"
    ):
        alignmask.load(tmp_path / "hf")
    assert (
        checkpoint.resolve(tmp_path / "run" / "best" / "model.safetensors")
        == tmp_path / "run" / "best"
    )
    save(tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").write_bytes(b"truncated")
    with pytest.raises(checkpoint.DamagedCheckpoint, match=r"model\.safetensors is damaged"):
        checkpoint.load_weights(tmp_path / "c")
    (tmp_path / "c" / "checksums.json").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        checkpoint.load_weights(tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        alignmask.load(tmp_path / "c")
    (tmp_path / "c" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        alignmask.load(tmp_path / "c")


@pytest.mark.parametrize("image", ["array", "tensor", "pil", "path", "grey"])
def test_a_loaded_model_predicts_on_any_kind_of_image(tmp_path: Path, image: str) -> None:
    from PIL import Image

    model = tiny.model()
    config = replace(
        CONFIG, model=model.config, data=replace(CONFIG.data, eval_short_side=64, eval_max_side=96)
    )
    checkpoint.save(tmp_path / "c", config, model.state_dict(), META)
    predictor = alignmask.load(tmp_path / "c" / "model.safetensors")
    assert predictor.class_names == ["a", "b", "c", "d"]
    tensor = torch.randint(0, 256, (3, 50, 70), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    array = tensor.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "image.png")
    given = {
        "array": array, "tensor": tensor, "pil": Image.fromarray(array), "path": tmp_path / "image.png", "grey": array[..., 0]
    }[image]  # fmt: skip
    instances = predictor.predict(given)
    assert instances.masks.shape[1:] == (50, 70)
    if image != "grey":
        expected = predictor.predict(tensor)
        assert torch.equal(instances.scores, expected.scores)
        assert torch.equal(instances.masks, expected.masks)
    with pytest.raises(ValueError, match="uint8"):
        predictor.predict(array.astype("float32"))
