"""`use_kernels` changes what runs, not what comes out: outputs, gradients, a training step, and
back again."""

from __future__ import annotations

import copy
import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from alignmask import ops
from alignmask.integrations.transformers import accelerate, restore, use_kernels
from tests.integrations import huggingface
from tests.integrations.huggingface import MODELS, inputs

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
LAYERS = {"mask2former": 2, "oneformer": 2, "deformable_detr": 4, "rt_detr": 2}


def build(make: Callable[[], nn.Module]) -> nn.Module:
    """With offsets and attention weights that depend on the image, as in a trained model."""
    torch.manual_seed(0)
    model = make()
    for name, parameter in model.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tensors(output: Any) -> Iterator[tuple[str, Tensor]]:
    """All floating point tensors of a model's output."""
    for name, value in output.items():
        for number, tensor in enumerate(value if isinstance(value, (tuple, list)) else [value]):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                yield f"{name}[{number}]", tensor


class Calls(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count[function._opname] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_the_same(name: str) -> None:
    model = build(MODELS[name])
    batch = inputs(model)
    with torch.no_grad(), Calls() as before:
        expected = dict(tensors(model(**batch)))
    assert use_kernels(model) is model
    with torch.no_grad(), Calls() as after:
        found = dict(tensors(model(**batch)))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(
            found[key], tensor, **CLOSE, equal_nan=True, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert (before.count["ms_deform_attn"], after.count["ms_deform_attn"]) == (0, LAYERS[name])
    assert before.count["grid_sampler_2d"] >= 3 * LAYERS[name]
    assert after.count["grid_sampler_2d"] == 0


FAMILIES = "deformable_detr grounding_dino lw_detr mm_grounding_dino omdet_turbo pp_doclayout_v2 rf_detr rt_detr"


@pytest.mark.parametrize("family", FAMILIES.split())
def test_the_sampling_of_other_families(family: str) -> None:
    """Each has its own copy of the class."""
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    module = modeling.MultiScaleDeformableAttention()
    shapes = [(5, 7), (3, 4)]
    value, locations = torch.randn(2, 47, 4, 8), torch.rand(2, 6, 4, 2, 3, 2) * 1.2 - 0.1
    weights = torch.rand(2, 6, 4, 2, 3)
    arguments = (value, torch.tensor(shapes), shapes, torch.tensor([0, 35]), locations, weights, 64)
    expected = module(*arguments)
    torch.testing.assert_close(use_kernels(module)(*arguments), expected)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same(name: str) -> None:
    model = build(MODELS[name])
    batch = inputs(model)

    def gradients() -> dict[str, Tensor | None]:
        model.zero_grad(set_to_none=True)
        outputs = dict(tensors(model(**batch)))
        sum(
            tensor.square().mean() for key, tensor in outputs.items() if "coord_logits" not in key
        ).backward()
        return {key: parameter.grad for key, parameter in model.named_parameters()}

    expected = gradients()
    use_kernels(model)
    found = gradients()
    assert sum(gradient is not None for gradient in expected.values()) > 50
    # Biases before a norm have no gradient but rounding errors.
    largest = max(
        float(gradient.abs().max()) for gradient in expected.values() if gradient is not None
    )
    for key, gradient in expected.items():
        if gradient is None:
            assert found[key] is None, key
        else:
            torch.testing.assert_close(
                found[key],
                gradient,
                rtol=1e-4,
                atol=1e-5 * largest,
                msg=lambda t, k=key: f"{k}: {t}",
            )


def test_training_goes_the_same_way() -> None:
    """Three steps of Mask2Former on its own loss; its points are random, so both runs get the same
    seed."""
    start = build(huggingface.mask2former)
    batch: dict[str, Any] = inputs(start)
    masks = torch.zeros(2, 3, *huggingface.SIZE)
    for n in range(3):
        masks[:, n, 20 * n : 20 * n + 30, 10 : 60 + 20 * n] = 1
    batch |= {
        "mask_labels": list(masks),
        "class_labels": [torch.tensor([0, 1, 2]), torch.tensor([3, 1, 4])],
    }

    def train(model: nn.Module) -> list[float]:
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    expected = train(copy.deepcopy(start))
    found = train(use_kernels(copy.deepcopy(start)))
    assert expected[2] < expected[0]
    assert found == pytest.approx(expected, rel=1e-3)


def test_attention_weights_are_returned_where_they_are_asked_for() -> None:
    model = build(huggingface.mask2former)
    batch = inputs(model)
    module = model.get_submodule("model.pixel_level_module.decoder.encoder.layers.0.self_attn")
    given: list[dict[str, Any]] = []
    with module.register_forward_pre_hook(
        lambda _, __, keywords: given.append(keywords), with_kwargs=True
    ):
        model(**batch)
    given[0]["output_attentions"] = True
    expected = module(**given[0])
    use_kernels(model)
    for tensor, reference in zip(module(**given[0]), expected, strict=True):
        torch.testing.assert_close(tensor, reference, **CLOSE)
    assert module(**given[0] | {"output_attentions": False})[1] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mask2former", "deformable_detr"])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """As far from float32 as the model itself is under autocast, but for luck: where a mask's logit
    is near 0, rounding decides what the next layer attends to."""
    model = build(MODELS[name])
    batch = inputs(model)
    key = "masks_queries_logits" if name == "mask2former" else "encoder_last_hidden_state"
    with torch.no_grad():
        exact = model(**batch)[key]
        with torch.autocast("cpu", dtype):
            rounded = model(**batch)[key].float()
            found = use_kernels(model)(**batch)[key].float()
    assert (found - exact).abs().mean() <= 2 * (rounded - exact).abs().mean()


def test_half_precision_weights() -> None:
    model = build(huggingface.mask2former).to(torch.bfloat16)
    batch = {
        key: value.bfloat16() if value.is_floating_point() else value
        for key, value in inputs(model).items()
    }
    module = model.get_submodule("model.pixel_level_module.decoder.encoder.layers.0.self_attn")
    with torch.no_grad():
        assert use_kernels(model)(**batch).masks_queries_logits.dtype == torch.bfloat16
    assert module.output_proj.weight.dtype == torch.bfloat16


# -- there and back
# --------------------------------------------------------------------------------------------------


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("name", MODELS)
def test_restore_undoes_it(name: str) -> None:
    model = build(MODELS[name])
    before, names = kinds(model), list(model.state_dict())
    with torch.no_grad():
        expected = dict(tensors(model(**inputs(model))))
    use_kernels(model)
    changed = [new for new, old in zip(kinds(model), before, strict=True) if new is not old]
    assert len(changed) == LAYERS[name]
    assert list(model.state_dict()) == names
    assert all(
        isinstance(module, kind) for module, kind in zip(model.modules(), before, strict=True)
    )
    assert restore(model) is model
    assert kinds(model) == before
    with torch.no_grad():
        for key, tensor in tensors(model(**inputs(model))):
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0, equal_nan=True)
    assert kinds(restore(model)) == before


def test_twice_is_once_and_copies_stay_accelerated() -> None:
    model = use_kernels(build(huggingface.mask2former))
    once = kinds(model)
    assert kinds(use_kernels(model)) == once
    duplicate = copy.deepcopy(model)
    assert kinds(duplicate) == once
    restore(duplicate)
    assert kinds(model) == once


def test_it_compiles_in_one_graph() -> None:
    model = use_kernels(build(huggingface.mask2former))
    module = model.get_submodule("model.pixel_level_module.decoder.encoder.layers.0.self_attn")
    shapes = [(4, 6), (8, 12)]
    module.n_levels = 2
    module.sampling_offsets, module.attention_weights = (
        nn.Linear(32, 4 * 2 * 4 * 2),
        nn.Linear(32, 4 * 2 * 4),
    )
    tokens = torch.randn(2, 4 * 6 + 8 * 12, 32)
    given = {
        "encoder_hidden_states": tokens, "position_embeddings": torch.randn_like(tokens),
        "reference_points": torch.rand(*tokens.shape[:2], 2, 2), "spatial_shapes_list": shapes,
    }  # fmt: skip
    expected, _ = module(tokens, **given)
    found, _ = torch.compile(module, backend="aot_eager", fullgraph=True)(tokens, **given)
    torch.testing.assert_close(found, expected)


# -- what is refused
# --------------------------------------------------------------------------------------------------


def test_a_model_without_such_modules_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"Sequential has none of the modules MultiScale.*it has no deformable attention",
    ):
        use_kernels(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"it has 2 RTDetrV2MultiscaleDeformableAttention"):
        use_kernels(huggingface.rt_detr_v2())


def test_a_forward_that_was_replaced_is_refused() -> None:
    model = build(huggingface.mask2former)
    module = model.get_submodule("model.pixel_level_module.decoder.encoder.layers.1.self_attn")
    module.forward = module.forward
    before = kinds(model)
    with pytest.raises(
        ValueError, match=r"layers\.1\.self_attn \(transformers\..*its forward was replaced already"
    ):
        use_kernels(model)
    assert kinds(model) == before


def test_a_forward_that_is_not_known_is_refused() -> None:
    class MultiScaleDeformableAttention(nn.Module):
        def forward(self, value: Tensor, mask: Tensor, tables: Tensor) -> Tensor:
            return value

    with pytest.raises(
        ValueError, match=r"its forward takes mask, tables, which this version does not know"
    ):
        use_kernels(nn.Sequential(MultiScaleDeformableAttention()))
    MultiScaleDeformableAttention.forward = lambda self, value: value  # type: ignore[assignment, method-assign]
    with pytest.raises(
        ValueError, match=r"its forward does not take attention_weights, im2col_step, .*too old"
    ):
        use_kernels(nn.Sequential(MultiScaleDeformableAttention()))


def test_a_device_without_a_kernel_is_told_of() -> None:
    with (
        ops.use_reference("ms_deform_attn"),
        pytest.warns(UserWarning, match=r"no ms_deform_attn kernel for cpu"),
    ):
        use_kernels(build(huggingface.mask2former))


def test_the_old_name_is_kept() -> None:
    assert accelerate is use_kernels
