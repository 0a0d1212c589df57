"""Trained models from files, ready to predict: `alignmask.load("runs/mine")`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from alignmask import checkpoint as checkpoints
from alignmask.config import Config, ModelConfig
from alignmask.config_files import without_pretrained
from alignmask.data.images import SampleRange
from alignmask.evaluation.calibrators import Calibration, read_calibration
from alignmask.model import AlignMask, build_model
from alignmask.predictor import Predictor
from alignmask.pretrained import read

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation


def load(
    checkpoint: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    sample_range: SampleRange | None = None,
) -> Predictor:
    """Load a trained model.

    Args:
        checkpoint: A checkpoint folder, a file in it, or a run's folder (then its best checkpoint,
            or its newest one if the run was never evaluated).
        device: Where the model runs, e.g. "cpu" or "cuda:1".
        sample_range: Values that become black and white in images of 16 or 32 bits a sample; by
            default those of the training (data.sample_range).

    Returns:
        The model, ready to predict.

    Raises:
        FileNotFoundError: The path leads to no checkpoint; the message names it.
        ValueError: A file of the checkpoint is damaged, or does not fit the others; the message
            names it.

    Example:
        >>> predictor = alignmask.load("runs/shapes")
        >>> predictor
        Predictor('shapes', resnet10t, 6 classes, cpu)
        >>> found = predictor.predict("photo.jpg", threshold=0.5)
        >>> found.masks.shape == (len(found), 50, 70)  # the size of the photo
        True
        >>> predictor.draw("photo.jpg", found).save("drawn.png")
    """
    folder = checkpoints.resolve(Path(checkpoint))
    config, meta = checkpoints.load_config(folder), checkpoints.load_meta(folder)
    if sample_range is not None:
        config = replace(config, data=replace(config.data, sample_range=sample_range))
    classes = config.model.num_classes
    for name in ("class_names", "category_ids"):
        if not isinstance(meta.get(name), list) or len(meta[name]) != classes:
            raise ValueError(
                f"checkpoint file {folder / checkpoints.META}: expected a list {name} of {classes} "
                "entries"
            )
    model = _model_of(config, folder)
    calibration = _calibration(folder / checkpoints.CALIBRATION, config)
    return Predictor(
        model.to(device), config, meta["class_names"], meta["category_ids"], calibration=calibration
    )


def _model_of(config: Config, folder: Path) -> AlignMask:
    """The model with the weights of the checkpoint. It is built without memory at first: damaged
    settings may ask for more than there is."""
    settings, weights = without_pretrained(config).model, checkpoints.load_weights(folder)
    try:
        layers = settings.pixel_decoder.layers, settings.query_decoder.layers
        if max(layers) > len(weights):
            raise ValueError(f"{max(layers)} layers, and {len(weights)} tensors")
        with torch.device("meta"):
            sketch = build_model(settings)
    except Exception as error:  # whatever a part of the model says to settings that it cannot have
        raise ValueError(
            f"checkpoint file {folder / checkpoints.CONFIG}: there is no such model: {error}"
        ) from error
    try:
        sketch.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        _, *faults = (line.strip() for line in str(error).splitlines())
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        raise ValueError(
            f"checkpoint {folder} does not fit its own config.json: {' '.join(faults[:2])}{more}"
        ) from error
    model = build_model(settings)
    model.load_state_dict(weights)
    return model


def _calibration(path: Path, config: Config) -> Calibration | None:
    """What is beside the checkpoint, if anything is. Raises ValueError if it is of another kind of
    score."""
    if not path.is_file():
        return None
    calibration = read_calibration(path)
    if calibration.fit.score not in ("file", config.model.score):
        raise ValueError(
            f"calibration file {path} is of the score {calibration.fit.score}, and the model "
            "scores by "
            f"{config.model.score}: calibrate again, or remove it"
        )
    return calibration


def from_mask2former(
    path: str | os.PathLike[str],
    model: ModelConfig | None = None,
    device: str | torch.device = "cpu",
) -> Predictor:
    """Load a checkpoint of Mask2Former's own code: a detectron2 `.pkl` or `.pth` with a ResNet or a
    Swin Transformer.

    Nothing in the file is executed. The file names no classes: 80 classes are taken for COCO's,
    others are numbered.

    Args:
        path: The file.
        model: The model to load the weights into, e.g. an AlignMask of the same shape; by default
            the Mask2Former that they are of (softmax classes, no aligned queries). The class head
            is loaded only into a softmax head for as many classes.
        device: Where the model runs, e.g. "cpu" or "cuda:1".

    Returns:
        The model, ready to predict. `report` says which tensors were left out.

    Raises:
        FileNotFoundError: The file does not exist.
        CheckpointError: The file is damaged, of another kind, or asks for code; or names are
            missing or unknown, or shapes differ (all of them in one message).

    Example:
        >>> predictor = alignmask.from_mask2former("model_final.pth")
        >>> predictor.class_names
        ['class 1', 'class 2', 'class 3', 'class 4', 'class 5']
        >>> print(predictor.report)
        everything was loaded and used
    """
    return _converted(read.read_mask2former(Path(path)), str(path), model, device)


def from_huggingface(
    model_or_dir: str | os.PathLike[str] | Mask2FormerForUniversalSegmentation,
    model: ModelConfig | None = None,
    device: str | torch.device = "cpu",
) -> Predictor:
    """Load a Mask2Former of Hugging Face: a `Mask2FormerForUniversalSegmentation`, or a folder it
    was saved to.

    Args:
        model_or_dir: The model, or a folder that its `save_pretrained` wrote. The folder has
            config.json and weights (safetensors, or .bin, which is read without executing
            anything), and may have preprocessor_config.json. transformers need not be installed to
            read a folder.
        model: As in `from_mask2former`.
        device: Where the model runs, e.g. "cpu" or "cuda:1".

    Returns:
        The model, ready to predict. `report` says which tensors were left out.

    Raises:
        FileNotFoundError, CheckpointError: As in `from_mask2former`; also a setting that AlignMask
            does not have.

    Example:
        >>> predictor = alignmask.from_huggingface("mask2former-swin")
        >>> predictor.class_names
        ['cat', 'dog', 'cow', 'hen', 'owl']
        >>> found = predictor.predict("photo.jpg")
    """
    if isinstance(model_or_dir, (str, os.PathLike)):
        folder = Path(model_or_dir)
        return _converted(read.read_huggingface_folder(folder), str(folder), model, device)
    return _converted(
        read.read_huggingface_model(model_or_dir), type(model_or_dir).__name__, model, device
    )


def _converted(
    source: read.Source, where: str, wanted: ModelConfig | None, device: str | torch.device
) -> Predictor:
    model, report = read.initialise_from(source, where, wanted)
    config = replace(source.config, model=model.config)
    names, ids = read.classes(source, model.config.num_classes)
    return Predictor(model.to(device), config, names, ids, report)
