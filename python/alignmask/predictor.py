"""Trained models, ready to predict on images: `alignmask.load(checkpoint).predict(image)`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignmask.config import SHOWN_SCORE, Colours, Config, ShownSuppression, TileChoice
from alignmask.data import collate, evaluation_transform
from alignmask.data.batch import Batch, Sample, image_alone
from alignmask.data.images import ImageLike, to_pixels
from alignmask.data.rle import encode
from alignmask.evaluation.calibrators import Calibration
from alignmask.model import AlignMask, Instances
from alignmask.model.sparse import SparseInstances
from alignmask.model.suppression import without_second_masks
from alignmask.model.tiles import Tiles, check_batch_size, in_words, predict_in_tiles, tiles_for
from alignmask.pictures.drawing import Drawable, draw_instances
from alignmask.pretrained import read

Threshold = float | Literal["best-f1"]
SUPPRESSION_IOU = 0.5
Found = TypeVar("Found", Instances, SparseInstances)


@dataclass(frozen=True)
class _Asked:
    """What `Predictor.predict` was asked for, checked."""

    threshold: Threshold
    suppression: ShownSuppression
    trusted: bool
    tiles: Tiles | None

    @property
    def tile(self) -> int | None:
        return None if self.tiles is None else self.tiles.side


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
        tile: TileChoice = "auto",
        overlap: float | None = None,
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
        tile: TileChoice = "auto",
        overlap: float | None = None,
        batch_size: int = 1,
    ) -> list[Instances]: ...

    def predict(
        self,
        image: ImageLike | list[Any] | tuple[Any, ...],
        *,
        threshold: Threshold = 0.0,
        suppression: ShownSuppression = "off",
        trusted: bool = False,
        tile: TileChoice = "auto",
        overlap: float | None = None,
        batch_size: int = 1,
    ) -> Instances | list[Instances]:
        """Find the instances in one image, or in each of several.

        An image is resized as a whole, or taken tile by tile and what the tiles show is merged
        (`alignmask.model.tiles.merge`): for many or small objects.

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
                (`calibration.fit.suppression`) and with the same tiles (`calibration.fit.tile`),
                which must be the same here.
            tile: Side of the tiles, in pixels of the image, 32 or more; or "whole" for none.
                "auto": as the model's settings say (`config.data.tile`). Each tile is resized
                as an image would be, so it should show objects at about the size that they had in
                training.
            overlap: Least share of a side that neighbouring tiles have in common. Instances that
                are smaller than that are whole in some tile. None: as the model's settings say.
            batch_size: Of a list, images of one size that follow each other are predicted together,
                at most so many per forward pass; in tiles, so many tiles of an image. The results
                are those of single images, but sums are rounded in another order: scores may differ
                in the seventh digit.

        Returns:
            The instances, best first, on the CPU; of a list of images, a list of them. Masks and
            boxes are at the image's own size.
            Those of a calibrated model have `quality`, the IoU to expect; it, too, is of
            predictions with the calibration's suppression and tiles. Where a guarantee holds,
            `trusted` says which instances it covers.

        Raises:
            ImageError: The image file cannot be read. (ImageError is a ValueError.)
            ValueError: The image has another shape or another type of numbers; or trusted instances
                are asked for, and there is no guarantee, or one of other predictions; or there are
                no thresholds, or tiles cannot be like this.
            TypeError: The argument is not an image.
        """

        asked = self._asked(threshold, suppression, trusted, tile, overlap)
        if asked.tiles is not None:
            found = [one.dense() for one in self._in_tiles(image, batch_size, asked)]
        else:

            def forward(batch: Batch) -> list[Instances]:
                return [found.cpu() for found in self.model.predict(batch)]

            found = self._each(image, batch_size, forward, asked)
        return found if isinstance(image, (list, tuple)) else found[0]

    @overload
    def predict_encoded(
        self,
        image: ImageLike,
        *,
        threshold: Threshold = 0.0,
        suppression: ShownSuppression = "off",
        trusted: bool = False,
        tile: TileChoice = "auto",
        overlap: float | None = None,
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
        tile: TileChoice = "auto",
        overlap: float | None = None,
        batch_size: int = 1,
    ) -> list[SparseInstances]: ...

    def predict_encoded(
        self,
        image: ImageLike | list[Any] | tuple[Any, ...],
        *,
        threshold: Threshold = 0.0,
        suppression: ShownSuppression = "off",
        trusted: bool = False,
        tile: TileChoice = "auto",
        overlap: float | None = None,
        batch_size: int = 1,
    ) -> SparseInstances | list[SparseInstances]:
        """As `predict`, with encoded masks: faster and smaller, where run lengths are what is
        wanted, or only some of the masks.

        Args:
            image: As in `predict`, as all that follow.
            threshold: As in `predict`.
            suppression: As in `predict`.
            trusted: As in `predict`.
            tile: As in `predict`. Memory is needed for the image, a batch of tiles and the encoded
                masks.
            overlap: As in `predict`.
            batch_size: As in `predict`.

        Returns:
            The instances, best first, with encoded masks: `rles`, or one by one `masks_NHW[n]`, or
            all at once `dense()`; of a list of images, a list of them.

        Raises:
            ImageError, ValueError, TypeError: As `predict`.
        """
        asked = self._asked(threshold, suppression, trusted, tile, overlap)
        if asked.tiles is not None:
            found = self._in_tiles(image, batch_size, asked)
        else:
            found = self._each(image, batch_size, self.model.predict_encoded, asked)
        return found if isinstance(image, (list, tuple)) else found[0]

    def predict_in_tiles(
        self,
        image: ImageLike,
        tile: int | None = None,
        *,
        overlap: float | None = None,
        threshold: Threshold = 0.0,
        suppression: ShownSuppression = "off",
        trusted: bool = False,
        batch_size: int = 1,
    ) -> SparseInstances:
        """`predict_encoded` of one image in tiles.

        Args:
            image: As in `predict`.
            tile: Side of the tiles, in pixels of the image. None: as the model's settings say, or
                512 if they say nothing.
            overlap: As in `predict`.
            threshold: As in `predict`.
            suppression: As in `predict`, after the tiles are merged.
            trusted: As in `predict`.
            batch_size: Tiles per forward pass.

        Returns:
            The instances, best first, with encoded masks: `rles`, or one by one `masks_NHW[n]`, or
            all at once `dense()`.

        Raises:
            ImageError, ValueError, TypeError: As `predict`.
        """
        side = self.config.data.tile or 512 if tile is None else tile
        return self.predict_encoded(
            image, threshold=threshold, suppression=suppression, trusted=trusted, tile=side,
            overlap=overlap, batch_size=batch_size,
        )  # fmt: skip

    def _each(
        self,
        image: ImageLike | list[Any] | tuple[Any, ...],
        batch_size: int,
        forward: Callable[[Batch], list[Found]],
        asked: _Asked,
    ) -> list[Found]:
        """What is found in each image; of several, those of one size that follow each other
        together."""
        check_batch_size(batch_size, "predict: batch_size")
        found: list[Found] = []
        for _, alike in itertools.groupby(
            map(self._sample, _listed(image)), lambda sample: sample.size
        ):
            while some := [self._transform(s) for s in itertools.islice(alike, batch_size)]:
                predicted = forward(collate(some).to(self.model.device))
                found += [self._selected(one, asked) for one in predicted]
        return found

    def _in_tiles(
        self, image: ImageLike | list[Any] | tuple[Any, ...], batch_size: int, asked: _Asked
    ) -> list[SparseInstances]:
        """What is found in each image, one after the other."""
        check_batch_size(batch_size, "predict: batch_size")
        assert asked.tiles is not None
        found = []
        for one in _listed(image):
            merged = predict_in_tiles(
                self.model, self._pixels(one), self._transform, tiles=asked.tiles, batch_size=batch_size,
                name=_name(one),
            )  # fmt: skip
            found.append(self._selected(merged, asked))
        return found

    def batch_of(self, image: ImageLike) -> Batch:
        """The image as the model takes it: resized and padded, on the CPU. Errors as of
        `predict`."""
        return collate([self._transform(self._sample(image))])

    def _sample(self, image: ImageLike) -> Sample:
        return image_alone(self._pixels(image), _name(image))

    def _asked(
        self,
        threshold: Threshold,
        suppression: ShownSuppression,
        trusted: bool,
        tile: TileChoice,
        overlap: float | None,
    ) -> _Asked:
        """The arguments of `predict`, checked."""
        if suppression not in get_args(ShownSuppression):
            raise ValueError(f"predict: suppression: expected off or hard, got {suppression!r}")
        if isinstance(threshold, str) and threshold != "best-f1":
            raise ValueError(f"predict: threshold: expected a number or best-f1, got {threshold!r}")
        if not isinstance(threshold, str) and not 0 <= threshold <= 1:
            raise ValueError(f"predict: threshold: expected 0 to 1, got {threshold:g}")
        if threshold == "best-f1" and (self.calibration is None or not self.calibration.best_f1):
            raise ValueError(
                "predict: the thresholds of the best F1 are not known: run `alignmask calibrate RUN`"
            )
        tiles = tiles_for(self.config.data, tile, overlap)
        asked = _Asked(threshold, suppression, trusted, tiles)
        if not trusted:
            return asked
        if self.calibration is None or not self.calibration.guarantees:
            raise ValueError(
                "predict: nothing is known to be trusted: run `alignmask calibrate RUN --precision "
                "0.9`"
            )
        fit = self.calibration.fit
        if fit.suppression != suppression:
            raise ValueError(
                f"predict: the guarantee is of predictions with suppression {fit.suppression}, and "
                f"these are to have {suppression}: "
                + (
                    "run `alignmask calibrate` with --suppression off or hard"
                    if fit.suppression == "soft"
                    else f"predict with {fit.suppression}, or calibrate with {suppression}"
                )
            )
        if fit.tile != asked.tile:
            raise ValueError(
                f"predict: the guarantee is of predictions {in_words(fit.tile)}, and these are to "
                f"be {in_words(asked.tile)}: predict with tile {fit.tile or 'whole'}, or calibrate "
                f"with {asked.tile or 'whole'}"
            )
        if all(guarantee.threshold is None for guarantee in self.calibration.guarantees):
            raise ValueError(
                "predict: nothing can be trusted: the images of the calibration did not support its "
                "guarantee (`alignmask calibrate` with more of them, or with a lower --precision)"
            )
        return asked

    def _selected(self, found: Found, asked: _Asked) -> Found:
        """With what the calibration says of each, without what was not asked for."""
        threshold, suppression = asked.threshold, asked.suppression
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
        fit = self.calibration.fit
        if self.calibration.guarantees and (fit.suppression, fit.tile) == (suppression, asked.tile):
            found.trusted_N = torch.from_numpy(self.calibration.trusted(score_N, category_N))
        if threshold == "best-f1":
            found = found[torch.from_numpy(score_N >= self._thresholds(found))]
        if asked.trusted and found.trusted_N is not None:
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


def _listed(image: ImageLike | list[Any] | tuple[Any, ...]) -> list[Any] | tuple[Any, ...]:
    return image if isinstance(image, (list, tuple)) else [image]


def _name(image: ImageLike) -> str:
    return str(image) if isinstance(image, (str, os.PathLike)) else "image"
