"""quality_focal_loss as a training step calls it: 10 outputs of 2 images, 200 queries each, 80
classes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from harness import Measurement, cases, main
from torch import Tensor

from alignmask import ops

OP = "quality_focal_loss"
SHAPES = {
    "10x2x200 rows": cases.LossShape(10 * 2 * 200, 80),
    "10x16x200 rows": cases.LossShape(10 * 16 * 200, 80),
}


def plain(logits_RC: Tensor, label_R: Tensor, iou_R: Tensor) -> Tensor:
    """Eq. (2) and (3) with torch's functions, for torch.compile."""
    target_RC = torch.zeros_like(logits_RC)
    positive_R = label_R >= 0
    target_RC.scatter_(1, label_R.clamp(min=0)[:, None], torch.where(positive_R, iou_R, 0)[:, None])
    bce_RC = torch.nn.functional.binary_cross_entropy_with_logits(
        logits_RC, target_RC, reduction="none"
    )
    weight_R = torch.where(positive_R | (iou_R < 0.5), 1, (1 - iou_R**2) / 0.75)
    return weight_R * ((target_RC - logits_RC.sigmoid()).abs() ** 2 * bce_RC).sum(1)


def compiled() -> Callable[..., Tensor] | None:
    """`plain`, compiled; None, with a printed line, where torch.compile does not work."""
    function = torch.compile(plain, dynamic=False)
    try:
        function(*cases.quality_focal_loss(cases.LossShape(4, 3)))
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        print(f"torch.compile is left out: {str(error).splitlines()[0]}")
        return None
    return function


def measurements(options: argparse.Namespace) -> Iterator[Measurement]:
    fast = None if options.quick else compiled()
    for name, shape in SHAPES.items():
        if options.quick:
            name, shape = "odd", cases.QUALITY_FOCAL_LOSS["odd"]
        logits, label, iou = cases.quality_focal_loss(shape)
        leaf = logits.clone().requires_grad_()

        def backward(
            function: Callable[..., Tensor], arguments: tuple[Tensor, ...] = (leaf, label, iou)
        ) -> object:
            return torch.autograd.grad(function(*arguments).sum(), arguments[0])

        peers = {"torch.compile": lambda b=backward: b(fast)} if fast else {}
        for threads in options.threads:
            yield Measurement(
                OP,
                {"shape": name, "dtype": "float32", "pass": "forward+backward"},
                threads,
                lambda b=backward: b(ops.quality_focal_loss),
                shape._asdict(),
                peers,
                {"reference": 4.0, "torch.compile": 2.5},
            )
        if options.quick:
            return


if __name__ == "__main__":
    main(measurements)
