"""One step of a training again, with a look at every module: where does it first stop being finite?

The step is that of a single process: losses of several processes are divided by other numbers.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from alignmask import checkpoint as checkpoints
from alignmask.config_files import without_pretrained
from alignmask.data import Batch
from alignmask.loss import Criterion
from alignmask.model import AlignMask, build_model
from alignmask.training import precision
from alignmask.training.accumulation import parts_of_step
from alignmask.training.non_finite import read_batches

SHOWN = 10
"""Of each list, so many lines are shown."""


@dataclass
class Replay:
    """What was found; empty lists where all was finite."""

    step: int
    error: str
    """What the training said."""
    images: list[int]
    weights: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    """In the order of the forward pass."""
    outputs: list[str] = field(default_factory=list)
    """Of the decoder."""
    losses: list[str] = field(default_factory=list)
    backward: list[str] = field(default_factory=list)
    """What torch.autograd.detect_anomaly says."""
    gradients: list[str] = field(default_factory=list)

    @property
    def is_finite(self) -> bool:
        return not any(found for _, found in self._parts())

    def _parts(self) -> Iterator[tuple[str, list[str]]]:
        yield "weights before the step", self.weights
        yield "images", self.inputs
        yield "modules, in the order of the forward pass", self.modules
        yield "outputs of the decoder (0 is before its first layer)", self.outputs
        yield "losses", self.losses
        yield "backward pass", self.backward
        yield "gradients", self.gradients

    def __str__(self) -> str:
        lines = [f"iteration {self.step}: {self.error}", f"images {self.images}"]
        for title, found in self._parts():
            lines.append(f"{title}: {'not finite:' if found else 'finite'}")
            lines += [f"  {line}" for line in found[:SHOWN]]
            if len(found) > SHOWN:
                lines.append(f"  ... and {len(found) - SHOWN} more")
        if self.is_finite:
            lines.append("The step is finite here: on another device, or with other versions.")
        return "\n".join(lines)


def replay(folder: Path, device: torch.device | str = "cpu") -> Replay:
    """Repeat the step in a folder that a training has left (`non_finite_step_N`).

    Raises FileNotFoundError if it is not such a folder.
    """
    batches = read_batches(folder)
    config, meta = checkpoints.load_config(folder), checkpoints.load_meta(folder)
    images = [image for batch in batches for image in batch.image_ids]
    found = Replay(meta["step"], meta["error"], images)

    model = build_model(without_pretrained(config).model)
    model.load_state_dict(checkpoints.load_weights(folder))
    model.backbone.freeze(config.train.freeze_backbone)
    model.to(device).train()
    for name, parameter in model.named_parameters():
        found.weights += faults(name, parameter)
    for number, batch in enumerate(batches):
        for name in ("image_BCHW", "masks_GHW"):
            where = f"micro-batch {number}: {name}" if len(batches) > 1 else name
            found.inputs += faults(where, getattr(batch, name))

    step = _Step(model, Criterion(config.model, config.loss), batches, meta["seed"], found)
    on_gpu = torch.device(device).type == "cuda"
    step.precision = precision.resolve(
        config.train.precision, precision.capability_at_hand() if on_gpu else None
    )
    step.run()
    if not found.losses:
        step.run_with_anomalies()
    return found


@dataclass
class _Step:
    model: AlignMask
    criterion: Criterion
    batches: list[Batch]
    seed: int
    found: Replay
    precision: precision.Precision = field(init=False)

    def run(self) -> None:
        """Forward passes, watched module by module, and backward passes."""
        hooks = [
            module.register_forward_hook(self._watch(name))
            for name, module in self.model.named_modules()
            if name
        ]
        for loss in self._losses(note=True):
            if not torch.isfinite(loss):
                break
            loss.backward()
        for hook in hooks:
            hook.remove()
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                self.found.gradients += faults(name, parameter.grad)

    def run_with_anomalies(self) -> None:
        """Again, in torch's own search for the operation whose gradient is NaN."""
        self.model.zero_grad()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with torch.autograd.detect_anomaly():
                    for loss in self._losses(note=False):
                        loss.backward()
            except RuntimeError as error:
                self.found.backward.append(str(error).splitlines()[0])
                self.found.backward += _forward_lines(caught)

    def _losses(self, note: bool) -> Iterator[Tensor]:
        """Of one micro-batch after the other; `note` what is not finite in them."""
        set_seed(self.seed)
        loss_config, device = self.criterion.loss_config, self.model.device
        names = {"bf16": torch.bfloat16, "fp16": torch.float16}
        autocast = self.precision.autocast
        with self.precision.applied():
            batches = [batch.to(device) for batch in self.batches]
            for part in parts_of_step(batches, self.model, self.criterion):
                with torch.autocast(device.type, names.get(autocast), autocast in names):
                    prediction = self.model(part.batch, part.points_BTK2)
                if note:
                    self._note_outputs(prediction)
                try:
                    losses = self.criterion(prediction, part.batch, part.normalisers)
                except FloatingPointError as error:  # of the matching costs
                    self.found.losses.append(str(error))
                    return
                for kind in ("objects", "aligned") if note else ():
                    for term in dataclasses.fields(getattr(losses, kind)):
                        values_L = getattr(getattr(losses, kind), term.name)
                        for output in (~values_L.isfinite()).nonzero().flatten().tolist():
                            self.found.losses.append(
                                f"{kind}: {term.name.removesuffix('_L')} of output {output}: "
                                f"{values_L[output].item():g}"
                            )
                yield losses.total(loss_config) / len(self.batches)

    def _note_outputs(self, prediction: Any) -> None:
        for output in range(prediction.outputs):
            for name in ("class_logits_LBRC", "mask_embedding_LBRE"):
                value = getattr(prediction, name)[output]
                self.found.outputs += faults(f"output {output}: {name.partition('_L')[0]}", value)
        self.found.outputs += faults("pixel_embedding", prediction.pixel_embedding_BEHW)

    def _watch(self, name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            seen = [fault for tensor in tensors_of(output) for fault in faults("", tensor)]
            if seen:
                bad_inputs = any(faults("", tensor) for tensor in tensors_of(inputs))
                before = "its inputs neither" if bad_inputs else "its inputs were finite"
                self.found.modules.append(f"{name} ({type(module).__name__}){seen[0]}; {before}")

        return look


def faults(name: str, value: Tensor) -> list[str]:
    """One line that says how many values are not finite, and which is the first; none if all
    are."""
    if not value.is_floating_point():
        return []
    bad = ~value.detach().isfinite()
    if not (count := int(bad.sum())):
        return []
    first = bad.nonzero()[0].tolist()
    number = value[tuple(first)].item()
    return [f"{name}: {count} of {value.numel()} values, the first at {first}: {number:g}"]


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))
    elif dataclasses.is_dataclass(value):
        yield from tensors_of([getattr(value, item.name) for item in dataclasses.fields(value)])


def _forward_lines(caught: list[warnings.WarningMessage]) -> list[str]:
    """Where the operation was called, from the traceback that torch gives as a warning: the last
    lines of it that are in this package."""
    traceback = "\n".join(str(warning.message) for warning in caught)
    places = re.findall(r'File "[^"]*/(alignmask/[^"]+)", line (\d+), in (\w+)', traceback)
    return [f"called in {file}:{line}, {function}" for file, line, function in places[-3:]]
