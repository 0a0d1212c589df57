"""What commit a2fe775 wrote is read today: its configurations, and a run of its folders.

tests/fixtures/a2fe775 holds configurations of its recipes and, of one small run, everything but the
numbers inside of the tensors: these are made up here.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignmask import load
from alignmask.checkpoint import load_config
from alignmask.config import DataConfig
from alignmask.config_files import REMOVED_FIELDS, config_from_dict, config_to_dict
from alignmask.data import val_dataset
from alignmask.evaluation.evaluate import evaluate_model
from alignmask.training.trainer import Trainer, train
from tests.conftest import REPOSITORY
from tests.training.runs import assert_equal, lines

OLD = REPOSITORY / "tests" / "fixtures" / "a2fe775"
LAYOUT = json.loads((OLD / "run" / "layout.json").read_text())


def old_tensors(seed: int) -> dict[str, Tensor]:
    """Weights under the names of then. Small and positive: they are variances, too."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (0.01 + 0.05 * torch.rand(shape, generator=generator)).to(getattr(torch, dtype))
        for name, (dtype, shape) in LAYOUT["tensors"].items()
    }


def old_state() -> dict[str, Any]:
    """What state.pt held after iteration 4."""
    state: dict[int, dict[str, Tensor]] = {}
    groups = []
    for group in LAYOUT["optimizer"]:
        indices = range(len(state), len(state) + len(group["parameters"]))
        groups.append({**group["settings"], "params": list(indices)})
        for index, name in zip(indices, group["parameters"], strict=True):
            shape = LAYOUT["tensors"][name][1]
            state[index] = {
                "step": torch.tensor(4.0), "exp_avg": torch.full(shape, 1e-3 * index), "exp_avg_sq": torch.ones(shape)
            }  # fmt: skip
    return {"optimizer": {"state": state, "param_groups": groups}, "scaler": None}


@pytest.fixture
def old_run(shapes: DataConfig, tmp_path: Path) -> Path:
    """A run that stopped after 4 of 6 iterations."""
    assert shapes.shapes is not None
    root = Path(shapes.shapes.root)
    values = json.loads((OLD / "run" / "config.json").read_text())
    values["out"] = str(tmp_path)
    values["data"]["shapes"]["root"] = str(root)
    for name in ("train_images", "train_annotations", "val_images", "val_annotations"):
        values["data"][name] = str(root / Path(values["data"][name]).name)
    run, weights = tmp_path / "run", old_tensors(1)
    for folder, kept in (
        (run / "checkpoints" / "step_0000004", weights),
        (run / "best", old_tensors(2)),
    ):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(values))
        save_file(kept, folder / "model.safetensors")
    save_file(old_tensors(2), run / "checkpoints" / "step_0000004" / "ema.safetensors")
    torch.save(old_state(), run / "checkpoints" / "step_0000004" / "state.pt")
    meta = json.loads((OLD / "run" / "meta.json").read_text())
    (run / "checkpoints" / "step_0000004" / "meta.json").write_text(json.dumps(meta))
    evaluated = lines(OLD / "run", "eval")[-1]["eval"]["modes"]
    metrics = {mode: found["metrics"] for mode, found in evaluated.items()}
    (run / "best" / "meta.json").write_text(json.dumps({**meta, "metrics": metrics}))
    (run / "config.json").write_text(json.dumps(values))
    shutil.copy(OLD / "run" / "metrics.jsonl", run)
    return run


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.update(
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return found


@pytest.mark.parametrize(
    "file",
    sorted(OLD.rglob("*/config.json")) + sorted(OLD.rglob("recipes/*.json")),
    ids=lambda p: p.stem,
)
def test_every_setting_of_an_old_configuration_is_kept(file: Path) -> None:
    values = json.loads(file.read_text())
    old, new = flat(values), flat(config_to_dict(config_from_dict(values, str(file))))
    gone = {name: old.pop(name) for name in REMOVED_FIELDS if name in old}
    assert {name: new[name] for name in old} == old
    assert gone.keys() == REMOVED_FIELDS.keys() or values["model"]["aligned_queries"] is None


@pytest.mark.parametrize(
    ("name", "value"), [("outline_share", 0.5), ("noised_sets", 1), ("noise", 0.1)]
)
def test_a_setting_that_is_gone_is_refused_where_it_had_an_effect(name: str, value: float) -> None:
    values = json.loads((OLD / "run" / "config.json").read_text())
    values["model"]["aligned_queries"][name] = value
    setting = f"model.aligned_queries.{name} = {value}"
    sentence = (
        f"old.json: {setting} is not supported any more; commit 70a9a1b is the last that has it"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        config_from_dict(values, "old.json")


def test_a_setting_that_never_was_is_refused() -> None:
    values = json.loads((OLD / "run" / "config.json").read_text())
    values["model"]["aligned_queries"]["sets"] = 1
    with pytest.raises(ValueError, match=r"old\.json: .*sets"):
        config_from_dict(values, "old.json")


def test_an_old_run_predicts_and_is_evaluated(old_run: Path) -> None:
    predictor = load(old_run)
    assert predictor.class_names == ["circle", "square", "triangle", "star", "ring", "cross"]
    assert_equal(predictor.model.state_dict(), old_tensors(2))
    found = evaluate_model(
        predictor.model,
        val_dataset(predictor.config.data),
        device="cpu",
        batch_size=2,
        workers=0,
        out=old_run,
    )
    assert set(found.metrics) == {"class", "class*mask", "class^0.5*mask"}


def test_an_old_run_is_continued(old_run: Path) -> None:
    config = load_config(old_run)
    trainer = Trainer(config)
    assert (trainer.step, trainer.elapsed, trainer.judge.best) == (
        4,
        pytest.approx(2.0788, abs=1e-4),
        0.0,
    )
    assert_equal(trainer.model.state_dict(), old_tensors(1))
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    expected = [name for group in LAYOUT["optimizer"] for name in group["parameters"]]
    found = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert [names[id(parameter)] for parameter in found] == expected
    for index, parameter in enumerate(found):
        assert (trainer.optimizer.state[parameter]["exp_avg"] == torch.tensor(1e-3 * index)).all()
    run = train(config)
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5, 6]
    assert (
        load_file(run / "checkpoints" / "step_0000006" / "model.safetensors").keys()
        == LAYOUT["tensors"].keys()
    )
    assert load_config(run / "checkpoints" / "step_0000006") == config
