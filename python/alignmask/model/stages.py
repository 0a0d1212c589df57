"""Which part of a backbone makes which of its four maps."""

from __future__ import annotations

from typing import Any

from torch import nn

STAGES = 4


class Stages:
    """The stages of a timm `features_only` model, numbered 1 to 4 from the input. Stage 1 is
    everything up to the map of stride 4, stage 2 what lies between it and that of stride 8, and so
    on.

    timm registers the modules of these models in the order in which they are applied. Raises
    ValueError for a model whose maps are not the outputs of modules.
    """

    def __init__(self, body: nn.Module, name: str) -> None:
        self.modules = dict(body.named_modules())
        self.number = {module: number for number, module in enumerate(self.modules)}
        info: Any = body.feature_info
        found = [self._find(output) for output in info.module_name()[-STAGES:]]
        self.last = [self._end(module) for module in found if module is not None]
        """The number of the last module of each stage."""
        if len(self.last) < STAGES or self.last != sorted(self.last):
            raise ValueError(
                f"backbone {name}: its stages cannot be told apart, so train.freeze_backbone must "
                "be 0 and train.layer_decay 1"
            )

    def _find(self, output: str) -> str | None:
        """timm's name for it, in which it may have replaced the dots of outer modules."""
        return next((m for m in (output, output.replace(".", "_")) if m in self.modules), None)

    def _end(self, module: str) -> int:
        """The number of the last module inside of a module, or of itself."""
        return self.number[module] + sum(1 for _ in self.modules[module].modules()) - 1

    def of_parameter(self, name: str) -> int:
        """The stage of a parameter of the body."""
        number = self.number[name.rpartition(".")[0]]
        inside = (stage for stage, last in enumerate(self.last, 1) if number <= last)
        return next(inside, STAGES)

    def up_to(self, stage: int) -> list[nn.Module]:
        """All modules that are wholly inside of the first stages."""
        last = self.last[stage - 1] if stage else -1
        return [module for name, module in self.modules.items() if self._end(name) <= last]
