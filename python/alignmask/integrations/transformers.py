"""Hugging Face models with our deformable attention: `use_kernels(model)`, one line, and
`restore(model)`.

Nothing is imported from transformers: modules are found by the name of their class.
B images, Q queries, S tokens of all levels, E = N·D channels, N heads, L levels, P points.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from alignmask import ops

Model = TypeVar("Model", bound=nn.Module)
Shapes = Sequence[tuple[int, int]]


def use_kernels(model: Model) -> Model:
    """Let every deformable attention in a Hugging Face model run on `ops.ms_deform_attn`.

    Models built with `Mask2FormerPixelDecoder...` or
    `OneFormerPixelDecoder...MultiscaleDeformableAttention` or with `MultiScaleDeformableAttention`
    are supported (Deformable DETR, Grounding DINO, RT-DETR, RF-DETR, LW-DETR, OmDet-Turbo, ...).
    Parameters and their names, gradients and outputs (to rounding) stay the same. A module that
    runs on our kernels already is left as it is. `restore` undoes it all.

    Args:
        model: The model. It is changed in place.

    Returns:
        The same model.

    Raises:
        ValueError: The model has no such module (the message lists what it has instead), or has one
            that cannot be replaced: its `forward` takes arguments that this version does not know,
            or was replaced by something else. Nothing is changed then.
    """
    found: dict[nn.Module, type] = {}
    others: Counter[str] = Counter()
    already = 0
    for name, module in model.named_modules():
        kind = type(module)
        if issubclass(kind, _OnKernels):
            already += 1
        elif kind.__name__ in _REPLACEMENTS:
            _check(name, module)
            found[module] = _on_kernels(kind)
        elif "deformable" in kind.__name__.lower() and "attention" in kind.__name__.lower():
            others[kind.__name__] += 1
    if not found and not already:
        instead = (
            ", ".join(f"{count} {name}" for name, count in others.items())
            or "no deformable attention of any kind"
        )
        raise ValueError(
            f"use_kernels: {type(model).__name__} has none of the modules "
            f"{', '.join(_REPLACEMENTS)}; it has {instead}"
        )
    devices = {parameter.device.type for parameter in model.parameters()}
    for device in sorted(devices - {"meta"}):
        if ops.implementation("ms_deform_attn", device) == "reference":
            warnings.warn(
                f"use_kernels: this build has no ms_deform_attn kernel for {device}: the model "
                "will not be faster there",
                stacklevel=2,
            )
    for module, replacement in found.items():
        module.__class__ = replacement
    return model


def restore(model: Model) -> Model:
    """Undo `use_kernels`: every module gets its own `forward` back. Returns the same model."""
    for module in model.modules():
        if isinstance(module, _OnKernels):
            module.__class__ = type(module).__bases__[1]
    return model


accelerate = use_kernels
"""The name that `use_kernels` had before."""


class _OnKernels:
    """Marks the classes that `use_kernels` makes from one of the classes below and the class that
    was there before."""

    forward: ClassVar[Callable[..., Any]]


class _Sampling(_OnKernels):
    """For `MultiScaleDeformableAttention`, the part without parameters: locations and weights are
    given."""

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Shapes,
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        return ops.ms_deform_attn(
            value, value_spatial_shapes_list, sampling_locations, attention_weights
        )


class _Attention(_OnKernels):
    """For the attention of Mask2Former's and OneFormer's pixel decoders: projections, and sampling
    from offsets.

    Its second result, the weights of S x N x L x P points, is computed only if `output_attentions`
    asks for it, and is None otherwise.
    """

    n_heads: int
    n_levels: int
    n_points: int
    value_proj: nn.Linear
    sampling_offsets: nn.Linear
    attention_weights: nn.Linear
    output_proj: nn.Linear

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_embeddings: Tensor | None = None,
        reference_points: Tensor | None = None,
        *,
        spatial_shapes_list: Shapes | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        assert encoder_hidden_states is not None
        assert reference_points is not None
        if spatial_shapes_list is None:  # OneFormer before transformers 5
            assert spatial_shapes is not None
            spatial_shapes_list = spatial_shapes.tolist()
        query_BQE = (
            hidden_states if position_embeddings is None else hidden_states + position_embeddings
        )
        value_BSE = self.value_proj(encoder_hidden_states)
        if attention_mask is not None:  # True on padding
            value_BSE = value_BSE.masked_fill(attention_mask[..., None], 0)
        points = (self.n_heads, self.n_levels, self.n_points)
        offsets_BQNLP2 = self.sampling_offsets(query_BQE).unflatten(-1, (*points, 2))
        logits_BQNLP = self.attention_weights(query_BQE).unflatten(-1, points)
        out_BQE = ops.ms_deform_attn_from_offsets(
            value_BSE.unflatten(-1, (self.n_heads, -1)), spatial_shapes_list, reference_points, offsets_BQNLP2,
            logits_BQNLP,
        )  # fmt: skip
        weights = (
            logits_BQNLP.flatten(-2).softmax(-1).view_as(logits_BQNLP)
            if output_attentions
            else None
        )
        return self.output_proj(out_BQE), weights


_REPLACEMENTS: dict[str, type[_OnKernels]] = {
    "MultiScaleDeformableAttention": _Sampling,
    "Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention": _Attention,
    "OneFormerPixelDecoderEncoderMultiscaleDeformableAttention": _Attention,
}


def _check(name: str, module: nn.Module) -> None:
    """Raise ValueError where our `forward` cannot stand in for the module's."""
    where = f"use_kernels: {name} ({type(module).__module__}.{type(module).__name__})"
    if "forward" in vars(module):
        raise ValueError(
            f"{where}: its forward was replaced already, by a kernel or a hook; call use_kernels "
            "before that"
        )
    theirs = inspect.signature(type(module).forward).parameters
    ours = inspect.signature(_REPLACEMENTS[type(module).__name__].forward).parameters
    if unknown := [argument for argument in theirs if argument not in ours]:
        raise ValueError(
            f"{where}: its forward takes {', '.join(unknown)}, which this version does not know"
        )
    required = {
        argument
        for argument, parameter in ours.items()
        if parameter.default is inspect.Parameter.empty
    }
    if missing := sorted(required - set(theirs)):
        raise ValueError(
            f"{where}: its forward does not take {', '.join(missing)}; is transformers too old?"
        )


_made: dict[type, type] = {}


def _on_kernels(kind: type) -> type:
    """A class with our `forward` and everything else of `kind`, its name included; one for each
    `kind`."""
    if kind not in _made:
        bases = (_REPLACEMENTS[kind.__name__], kind)
        _made[kind] = type(kind.__name__, bases, {"__module__": kind.__module__})
    return _made[kind]
