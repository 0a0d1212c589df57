"""Two processes train one model (gloo, CPU), through the command that a user would give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from alignmask import load
from tests import tiny

SCRIPT = """
import json, os, sys
from pathlib import Path
from alignmask.config import Config, DataConfig, LossConfig, ShapesConfig, TrainConfig
from alignmask.train.trainer import Trainer, train
from tests import tiny
root, rank = Path(sys.argv[1]), os.environ["RANK"]
seen, step = [], Trainer.train_step

def noting(self, batches):
    def spy():
        for batch in batches:
            seen.append(batch.image_ids)
            yield batch
    values = step(self, spy())
    weights = sum(float(p.detach().double().abs().sum()) for p in self.model.parameters())
    (root / f"rank{rank}.json").write_text(json.dumps({"seen": seen, "weights": weights}))
    return values

Trainer.train_step = noting
train(Config(
    "run", root, tiny.model_config(num_classes=6),
    DataConfig(shapes=ShapesConfig(root / "shapes", 8, 3, 64), crop=64, eval_short_side=64, eval_max_side=64, workers=0),
    LossConfig(points=64),
    TrainConfig(iterations=4, batch_size=4, learning_rate=1e-3, warmup=1, clip=1.0, log_every=1, accumulate=1),
))
"""


def test_two_processes_train_and_leave_one_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    repository = Path(tiny.__file__).parent.parent
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*launch, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(repository)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]  # one model, after gradients of different images
    for epoch in (0, 2):  # 8 images, 4 a step
        visits = [image for rank in (first, second) for ids in rank["seen"][epoch : epoch + 2] for image in ids]
        assert sorted(visits) == list(range(1, 9))
    assert load(tmp_path / "run").class_names[0] == "circle"
