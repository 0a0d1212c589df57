"""One image with its instances (Sample), and several of them padded to one size (Batch).

Dimensions: B images, G instances of the whole batch (flat, `owner_G` names the image), N instances
of one image, C = 3 colour channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Sample:
    """One image and its instances, all of them at the image's size."""

    image_CHW: Tensor
    """uint8, RGB."""
    masks_NHW: Tensor
    """bool."""
    labels_N: Tensor
    """int64, contiguous: 0 .. classes - 1."""
    image_id: int
    file_name: str
    original_size: Size
    """Size of the image file."""
    canvas: Size | None = None
    """Smallest size that `collate` pads this sample to (right and bottom); None asks for no
    padding. A fixed training crop sets it, so that images that are smaller than the crop still make
    batches of one constant size."""

    @property
    def size(self) -> Size:
        """Size of the (possibly resized, cropped) image."""
        height, width = self.image_CHW.shape[-2:]
        return height, width


def image_alone(image_CHW: Tensor, name: str) -> Sample:
    """An image to predict on: a sample without instances, with id 0."""
    size = (image_CHW.shape[1], image_CHW.shape[2])
    return Sample(
        image_CHW=image_CHW,
        masks_NHW=torch.zeros(0, *size, dtype=torch.bool),
        labels_N=torch.zeros(0, dtype=torch.long),
        image_id=0,
        file_name=name,
        original_size=size,
    )


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`, without waiting for what a GPU is doing."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Batch:
    """Images of a common padded size; every image occupies the top left corner of its slot."""

    image_BCHW: Tensor
    """uint8, RGB, 0 where padded; the sides are divisible by `collate`'s divisor."""
    valid_BHW: Tensor
    """bool, True on real pixels."""
    masks_GHW: Tensor
    """bool, at the padded size."""
    labels_G: Tensor
    """int64."""
    owner_G: Tensor
    """int64, ascending: index in the batch of the image that an instance belongs to."""
    counts: list[int]
    """Instances of each image, on the host: no device transfer is needed to split G."""
    image_ids: list[int]
    file_names: list[str]
    sizes: list[Size]
    """Size of each image before padding."""
    original_sizes: list[Size]
    """Size of each image file."""

    @property
    def batch_size(self) -> int:
        return len(self.counts)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with its tensors on `device`; host lists are shared."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (`DataLoader(pin_memory=True)` calls this)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            image_BCHW=function(self.image_BCHW),
            valid_BHW=function(self.valid_BHW),
            masks_GHW=function(self.masks_GHW),
            labels_G=function(self.labels_G),
            owner_G=function(self.owner_G),
        )


def collate(samples: Sequence[Sample], divisor: int = 32) -> Batch:
    """Pad samples at the right and the bottom to one size divisible by `divisor`, and concatenate
    their instances.

    Raises ValueError, naming the image, if `samples` is empty or a sample's masks or labels do not
    fit its image.
    """
    if not samples:
        raise ValueError("collate: expected at least one sample, got none")
    for sample in samples:
        _check(sample)
    canvases = [sample.canvas or sample.size for sample in samples] + [
        sample.size for sample in samples
    ]
    height, width = (-(-max(side) // divisor) * divisor for side in zip(*canvases, strict=True))

    counts = [len(sample.labels_N) for sample in samples]
    image_BCHW = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)
    valid_BHW = torch.zeros(len(samples), height, width, dtype=torch.bool)
    masks_GHW = torch.zeros(sum(counts), height, width, dtype=torch.bool)
    first = 0
    for index, (sample, count) in enumerate(zip(samples, counts, strict=True)):
        h, w = sample.size
        image_BCHW[index, :, :h, :w] = sample.image_CHW
        valid_BHW[index, :h, :w] = True
        masks_GHW[first : first + count, :h, :w] = sample.masks_NHW
        first += count
    return Batch(
        image_BCHW=image_BCHW,
        valid_BHW=valid_BHW,
        masks_GHW=masks_GHW,
        labels_G=torch.cat([sample.labels_N for sample in samples]),
        owner_G=torch.arange(len(samples)).repeat_interleave(torch.tensor(counts)),
        counts=counts,
        image_ids=[sample.image_id for sample in samples],
        file_names=[sample.file_name for sample in samples],
        sizes=[sample.size for sample in samples],
        original_sizes=[sample.original_size for sample in samples],
    )


def _check(sample: Sample) -> None:
    image, masks, labels = sample.image_CHW, sample.masks_NHW, sample.labels_N
    where = f"collate: image id {sample.image_id} ({sample.file_name}):"
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"{where} image_CHW: expected uint8 [3, H, W], got {image.dtype} {list(image.shape)}"
        )
    if masks.dtype != torch.bool or masks.shape != (len(labels), *sample.size):
        raise ValueError(
            f"{where} masks_NHW: expected bool {[len(labels), *sample.size]}, got {masks.dtype} "
            f"{list(masks.shape)}"
        )
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(
            f"{where} labels_N: expected int64 [N], got {labels.dtype} {list(labels.shape)}"
        )
