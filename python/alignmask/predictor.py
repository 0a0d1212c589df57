"""Trained models, ready to predict on images: `alignmask.load(checkpoint).predict(image)`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignmask import checkpoint as checkpoints
from alignmask.config import SHOWN_SCORE, Config, ModelConfig
from alignmask.config_files import without_pretrained
from alignmask.data import collate, evaluation_transform
from alignmask.data.batch import Batch, image_alone
from alignmask.data.images import ImageLike, to_pixels
from alignmask.data.rle import encode
from alignmask.evaluation.calibrators import Calibration, read_calibration
from alignmask.model import AlignMask, Instances, build_model
from alignmask.model.suppression import without_second_masks
from alignmask.model.tiles import SparseInstances, predict_in_tiles
from alignmask.pictures.drawing import Drawable, draw_instances
from alignmask.pretrained import read

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation

ShownSuppression = Literal["off", "hard"]
Threshold = float | Literal["best-f1"]
SUPPRESSION_IOU = 0.5
Found = TypeVar("Found", Instances, SparseInstances)


class Predictor:
    """A trained model with everything that it needs to predict on images.

    Attributes:
        model: The model, in evaluation mode.
        config: The settings of the run that trained it.
        class_names: The name of every class, by contiguous label.
        category_ids: The COCO category id of every class, by contiguous label.
        report: What was left out when the weights of another project were loaded; None for a
            checkpoint of AlignMask.
        calibration: What `alignmask calibrate` found; None if the checkpoint has not been
            calibrated.
    """

    def __init__(
        self,
        model: AlignMask,
        config: Config,
        class_names: list[str],
        category_ids: list[int],
        report: read.LoadReport | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.model = model.eval()
        self.config = config
        self.class_names = class_names
        self.category_ids = category_ids
        self.report = report
        self.calibration = calibration
        self._transform = evaluation_transform(config.data)

    def __repr__(self) -> str:
        count = len(self.class_names)
        classes = f"{count} classes" if count != 1 else "1 class"
        return f"Predictor({self.config.name!r}, {self.config.model.backbone.name}, {classes}, {self.model.device})"

    def predict(
        self,
        image: ImageLike,
        *,
        threshold: Threshold = 0.0,
        suppression: ShownSuppression = "off",
        trusted: bool = False,
    ) -> Instances:
        """Find the instances in one image, which is resized as a whole.

        Args:
            image: A path, a PIL image, a uint8 array [H, W, 3] (or [H, W], or [H, W, 4]), or a
                uint8 tensor [3, H, W]. Colours are RGB; alpha is dropped. Files and PIL images are
                turned upright by their EXIF orientation, unless `config.data.exif` is "ignore".
            threshold: Instances with a lower score are left out; "best-f1": than that of their
                class with which `alignmask calibrate` found the largest F1.
            suppression: "hard" leaves out second masks: of two instances of one class whose IoU is
                above 0.5, the worse-scored one. Small models often find an object twice.
            trusted: Return only the instances that the guarantee of the calibration covers. It is
                of predictions with the suppression that the calibration was made with
                (`calibration.fit.suppression`), which must be the same here.

        Returns:
            The instances, best first, on the CPU; masks and boxes are at the image's own size.
            Those of a calibrated model have `quality`, the IoU to expect; it, too, is of
            predictions with the calibration's suppression. Where a guarantee holds, `trusted` says
            which instances it covers.

        Raises:
            ImageError: The image file cannot be read. (ImageError is a ValueError.)
            ValueError: The image has another shape or another type of numbers; or trusted instances
                are asked for, and there is no guarantee, or one of other predictions; or there are
                no thresholds.
            TypeError: The argument is not an image.
        """
        self._check(threshold, suppression, trusted)
        batch = self.batch_of(image).to(self.model.device)
        return self._selected(self.model.predict(batch)[0].cpu(), threshold, suppression, trusted)

    def predict_in_tiles(
        self,
        image: ImageLike,
        tile: int = 512,
        *,
        overlap: float = 0.2,
        threshold: Threshold = 0.0,
        suppression: ShownSuppression = "off",
        trusted: bool = False,
        batch_size: int = 1,
    ) -> SparseInstances:
        """Find the instances in one large image, tile by tile: for more or smaller instances than
        the model finds in the image as a whole.

        Each tile is resized as an image would be, so tiles should show objects at about the size
        that they had in training. An instance that several tiles show is returned once
        (`alignmask.model.tiles.merge` says how). Memory is needed for the image, a batch of tiles
        and the encoded masks.

        Args:
            image: As in `predict`.
            threshold: As in `predict`.
            suppression: As in `predict`, after the tiles are merged.
            trusted: As in `predict`.
            tile: Side of the tiles, in pixels of the image; 32 or more.
            overlap: Least share of a side that neighbouring tiles have in common. Instances that
                are smaller than that are whole in some tile.
            batch_size: Tiles per forward pass.

        Returns:
            The instances, best first, with encoded masks: `rles`, or one by one `masks_NHW[n]`, or
            all at once `dense()`.

        Raises:
            ImageError, ValueError, TypeError: As `predict`; ValueError also for tiles that cannot
                be.
        """
        self._check(threshold, suppression, trusted)
        found = predict_in_tiles(
            self.model, self._pixels(image), self._transform, tile=tile, overlap=overlap,
            batch_size=batch_size, name=_name(image),
        )  # fmt: skip
        return self._selected(found, threshold, suppression, trusted)

    def batch_of(self, image: ImageLike) -> Batch:
        """The image as the model takes it: resized and padded, on the CPU. Errors as of
        `predict`."""
        return collate([self._transform(image_alone(self._pixels(image), _name(image)))])

    def _check(self, threshold: Threshold, suppression: ShownSuppression, trusted: bool) -> None:
        if suppression not in get_args(ShownSuppression):
            raise ValueError(f"predict: suppression: expected off or hard, got {suppression!r}")
        if isinstance(threshold, str) and threshold != "best-f1":
            raise ValueError(f"predict: threshold: expected a number or best-f1, got {threshold!r}")
        if threshold == "best-f1" and (self.calibration is None or not self.calibration.best_f1):
            raise ValueError(
                "predict: the thresholds of the best F1 are not known: run `alignmask calibrate RUN`"
            )
        if not trusted:
            return
        if self.calibration is None or not self.calibration.guarantees:
            raise ValueError(
                "predict: nothing is known to be trusted: run `alignmask calibrate RUN --precision "
                "0.9`"
            )
        if (made_with := self.calibration.fit.suppression) != suppression:
            raise ValueError(
                f"predict: the guarantee is of predictions with suppression {made_with}, and these "
                f"are to have {suppression}: "
                + (
                    "run `alignmask calibrate` with --suppression off or hard"
                    if made_with == "soft"
                    else f"predict with {made_with}, or calibrate with {suppression}"
                )
            )

    def _selected(
        self, found: Found, threshold: Threshold, suppression: ShownSuppression, trusted: bool
    ) -> Found:
        """With what the calibration says of each, without what was not asked for."""
        # The lowest score first, which leaves the ranks of all others as they are: a guarantee is
        # of the best ones of an image, and a threshold of each class would take some from between.
        lowest = self._thresholds(found).min(initial=1.0) if threshold == "best-f1" else threshold
        if lowest > 0:
            found = found[found.scores_N.double() >= lowest]
        if suppression == "hard":  # what scores less than the threshold suppresses nothing above it
            rles = found.rles if isinstance(found, SparseInstances) else encode(found.masks_NHW)
            kept_N = without_second_masks(
                found.scores_N.numpy(), found.labels_N.numpy(), rles, found.boxes_N4.numpy(),
                SUPPRESSION_IOU,
            )  # fmt: skip
            found = found[torch.from_numpy(kept_N)]
        if self.calibration is None:
            return found
        score_N, category_N = found.scores_N.double().numpy(), self._categories(found)
        found.quality_N = torch.from_numpy(self.calibration.quality(score_N, category_N)).float()
        if self.calibration.guarantees and self.calibration.fit.suppression == suppression:
            found.trusted_N = torch.from_numpy(self.calibration.trusted(score_N, category_N))
        if threshold == "best-f1":
            found = found[torch.from_numpy(score_N >= self._thresholds(found))]
        if trusted and found.trusted_N is not None:
            found = found[found.trusted_N]
        return found

    def _categories(self, found: Found) -> np.ndarray:
        return np.array(self.category_ids)[found.labels_N.numpy()]

    def _thresholds(self, found: Found) -> np.ndarray:
        """float64 [N]: of the best F1, for each instance."""
        assert self.calibration is not None  # _check
        assert self.calibration.best_f1 is not None
        return self.calibration.best_f1.of(self._categories(found))

    def draw(
        self,
        image: ImageLike,
        instances: Drawable | None = None,
        *,
        threshold: float = SHOWN_SCORE,
    ) -> Image.Image:
        """Draw instances, with class names and scores, over their image.

        Args:
            image: As in `predict`.
            instances: What `predict` found in the image; it is called if they are not given.
            threshold: Instances with a lower score are left out.

        Returns:
            The picture. A small image is enlarged, so that the text is readable.
        """
        if instances is None:
            instances = self.predict(image)
        image_HWC = self._pixels(image).permute(1, 2, 0).numpy()
        return draw_instances(image_HWC, instances, self.class_names, threshold=threshold)

    def _pixels(self, image: ImageLike) -> Tensor:
        data = self.config.data
        return to_pixels(image, exif=data.exif, sample_range=data.sample_range)


def _name(image: ImageLike) -> str:
    return str(image) if isinstance(image, (str, os.PathLike)) else "image"


def load(checkpoint: str | os.PathLike[str], device: str | torch.device = "cpu") -> Predictor:
    """Load a trained model.

    Args:
        checkpoint: A checkpoint folder, a file in it, or a run's folder (then its best checkpoint,
            or its newest one if the run was never evaluated).
        device: Where the model runs, e.g. "cpu" or "cuda:1".

    Returns:
        The model, ready to predict.

    Raises:
        FileNotFoundError: There is no checkpoint; the message names the path.
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
    classes = config.model.num_classes
    for name in ("class_names", "category_ids"):
        if (
            not isinstance(meta, dict)
            or not isinstance(meta.get(name), list)
            or len(meta[name]) != classes
        ):
            raise ValueError(
                f"checkpoint file {folder / checkpoints.META}: expected a list {name} of {classes} "
                "entries"
            )
    model = build_model(without_pretrained(config).model)
    try:
        model.load_state_dict(checkpoints.load_weights(folder))
    except RuntimeError as error:
        _, *faults = (line.strip() for line in str(error).splitlines())
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        raise ValueError(
            f"checkpoint {folder} does not fit its own config.json: {' '.join(faults[:2])}{more}"
        ) from error
    calibration = _calibration(folder / checkpoints.CALIBRATION, config)
    return Predictor(
        model.to(device), config, meta["class_names"], meta["category_ids"], calibration=calibration
    )


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
        FileNotFoundError: There is no such file.
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
