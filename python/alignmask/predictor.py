"""Trained models, ready to predict on images: `alignmask.load(checkpoint).predict(image)`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignmask.config import SHOWN_SCORE, Colours, Config, ShownSuppression
from alignmask.data import collate, evaluation_transform
from alignmask.data.batch import Batch, Sample, image_alone
from alignmask.data.images import ImageLike, to_pixels
from alignmask.data.rle import encode
from alignmask.evaluation.calibrators import Calibration
from alignmask.model import AlignMask, Instances
from alignmask.model.sparse import SparseInstances
from alignmask.model.suppression import without_second_masks
from alignmask.model.tiles import predict_in_tiles
from alignmask.pictures.drawing import Drawable, draw_instances
from alignmask.pretrained import read

if TYPE_CHECKING:
    pass

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

    @overload
    def predict(
        self,
        image: ImageLike,
        *,
        threshold: Threshold = 0.0,
        suppression: ShownSuppression = "off",
        trusted: bool = False,
        batch_size: int = 1,
    ) -> Instances: ...

    @overload
    def predict(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        threshold: Threshold = 0.0,
        suppression: ShownSuppression = "off",
        trusted: bool = False,
        batch_size: int = 1,
    ) -> list[Instances]: ...

    def predict(
        self,
        image: ImageLike | list[Any] | tuple[Any, ...],
        *,
        threshold: Threshold = 0.0,
        suppression: ShownSuppression = "off",
        trusted: bool = False,
        batch_size: int = 1,
    ) -> Instances | list[Instances]:
        """Find the instances in one image, which is resized as a whole, or in each of several.

        Args:
            image: A path, a PIL image, a uint8 array [H, W, 3] (or [H, W], or [H, W, 4]), or a
                uint8 tensor [3, H, W]. Colours are RGB; alpha is dropped. Files and PIL images are
                turned upright by their EXIF orientation, unless `config.data.exif` is "ignore". Or
                a list of such images.
            threshold: Instances with a lower score are left out; "best-f1": than that of their
                class with which `alignmask calibrate` found the largest F1.
            suppression: "hard" leaves out second masks: of two instances of one class whose IoU is
                above 0.5, the worse-scored one. Small models often find an object twice.
            trusted: Return only the instances that the guarantee of the calibration covers. It is
                of predictions with the suppression that the calibration was made with
                (`calibration.fit.suppression`), which must be the same here.
            batch_size: Of a list, images of one size that follow each other are predicted together,
                at most so many per forward pass. The results are those of single images, but sums
                are rounded in another order: scores may differ in the seventh digit.

        Returns:
            The instances, best first, on the CPU; of a list of images, a list of them. Masks and
            boxes are at the image's own size.
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

        def forward(batch: Batch) -> list[Instances]:
            return [found.cpu() for found in self.model.predict(batch)]

        found = self._each(image, batch_size, forward, threshold, suppression, trusted)
        return found if isinstance(image, (list, tuple)) else found[0]

    @overload
    def predict_encoded(
        self,
        image: ImageLike,
        *,
        threshold: Threshold = 0.0,
        suppression: ShownSuppression = "off",
        trusted: bool = False,
        batch_size: int = 1,
    ) -> SparseInstances: ...

    @overload
    def predict_encoded(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        threshold: Threshold = 0.0,
        suppression: ShownSuppression = "off",
        trusted: bool = False,
        batch_size: int = 1,
    ) -> list[SparseInstances]: ...

    def predict_encoded(
        self,
        image: ImageLike | list[Any] | tuple[Any, ...],
        *,
        threshold: Threshold = 0.0,
        suppression: ShownSuppression = "off",
        trusted: bool = False,
        batch_size: int = 1,
    ) -> SparseInstances | list[SparseInstances]:
        """As `predict`, with encoded masks: faster and smaller, where run lengths are what is
        wanted, or only some of the masks.

        Args:
            image: As in `predict`, as all that follow.
            threshold: As in `predict`.
            suppression: As in `predict`.
            trusted: As in `predict`.
            batch_size: As in `predict`.

        Returns:
            The instances, best first, with encoded masks: `rles`, or one by one `masks_NHW[n]`, or
            all at once `dense()`; of a list of images, a list of them.

        Raises:
            ImageError, ValueError, TypeError: As `predict`.
        """
        found = self._each(
            image, batch_size, self.model.predict_encoded, threshold, suppression, trusted,
        )  # fmt: skip
        return found if isinstance(image, (list, tuple)) else found[0]

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

    def _each(
        self,
        image: ImageLike | list[Any] | tuple[Any, ...],
        batch_size: int,
        forward: Callable[[Batch], list[Found]],
        threshold: Threshold,
        suppression: ShownSuppression,
        trusted: bool,
    ) -> list[Found]:
        """What is found in each image; of several, those of one size that follow each other
        together."""
        self._check(threshold, suppression, trusted)
        if batch_size < 1:
            raise ValueError(f"predict: batch_size: expected 1 or more, got {batch_size}")
        images = image if isinstance(image, (list, tuple)) else [image]
        samples = map(self._sample, images)
        found: list[Found] = []
        for _, alike in itertools.groupby(samples, lambda sample: sample.size):
            while some := [self._transform(s) for s in itertools.islice(alike, batch_size)]:
                predicted = forward(collate(some).to(self.model.device))
                found += [self._selected(one, threshold, suppression, trusted) for one in predicted]
        return found

    def batch_of(self, image: ImageLike) -> Batch:
        """The image as the model takes it: resized and padded, on the CPU. Errors as of
        `predict`."""
        return collate([self._transform(self._sample(image))])

    def _sample(self, image: ImageLike) -> Sample:
        return image_alone(self._pixels(image), _name(image))

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
        colours: Colours = "instance",
    ) -> Image.Image:
        """Draw instances, with class names and scores, over their image.

        Args:
            image: As in `predict`.
            instances: What `predict` found in the image; it is called if they are not given.
            threshold: Instances with a lower score are left out.
            colours: What colours tell apart: the instances, or the classes.

        Returns:
            The picture. A small image is enlarged, so that the text is readable.
        """
        if instances is None:
            instances = self.predict(image)
        image_HWC = self._pixels(image).permute(1, 2, 0).numpy()
        return draw_instances(
            image_HWC, instances, self.class_names, threshold=threshold, colours=colours
        )

    def _pixels(self, image: ImageLike) -> Tensor:
        data = self.config.data
        return to_pixels(image, exif=data.exif, sample_range=data.sample_range)


def _name(image: ImageLike) -> str:
    return str(image) if isinstance(image, (str, os.PathLike)) else "image"
