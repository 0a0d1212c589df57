"""Makes a run's best checkpoint one of the models that come with the package: weights in half
precision, settings without the paths of this machine, and the calibration.

    python bench/release.py RUN NAME

Then `alignmask.load("NAME")` loads it. Write its model card, released/NAME/README.md, by hand.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from alignmask import checkpoint
from alignmask.config import Config


def release(run: Path, folder: Path) -> int:
    """Returns the size of the weights in bytes."""
    source = checkpoint.resolve(run)
    config, meta = checkpoint.load_config(source), checkpoint.load_meta(source)
    data = replace(
        config.data,
        train_images=None,
        train_annotations=None,
        val_images=None,
        val_annotations=None,
    )
    weights = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in checkpoint.load_weights(source).items()
    }
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is beyond the range of half precision")
    card = folder / "README.md"
    text = card.read_text() if card.exists() else None
    checkpoint.save(
        folder,
        Config(
            folder.name,
            model=config.model,
            data=data,
            loss=config.loss,
            train=replace(config.train, init_from=None),
        ),
        weights,
        {key: meta[key] for key in ("step", "class_names", "category_ids", "metrics")},
    )
    if text is not None:
        card.write_text(text)
    if (source / checkpoint.CALIBRATION).exists():
        shutil.copy(source / checkpoint.CALIBRATION, folder)
    return (folder / checkpoint.MODEL).stat().st_size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    arguments = parser.parse_args()
    size = release(arguments.run, checkpoint.RELEASED / arguments.name)
    print(f"{checkpoint.RELEASED / arguments.name}: {size / 1e6:.1f} MB")
