"""Half precision for an ONNX graph."""

from __future__ import annotations

import pytest
import torch

ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

from alignmask.exporting.half import EXACT, half_precision  # noqa: E402


def graph() -> tuple[ir.Model, torch.Tensor]:
    """x -> twice the same product with a weight, a product without one, the class head."""
    weight = ir.val("weight", const_value=ir.tensor(torch.eye(4).numpy() / 3, name="weight"))
    head = ir.val("head", const_value=ir.tensor(torch.eye(4).numpy() / 3, name="head"))
    bias = ir.val(EXACT, const_value=ir.tensor(torch.zeros(4).numpy(), name=EXACT))
    x = ir.val("x", ir.DataType.FLOAT, [2, 4])
    one = ir.node("MatMul", [x, weight], name="one")
    two = ir.node("MatMul", [x, weight], name="two")
    turned = ir.node("Transpose", [two.outputs[0]], {"perm": [1, 0]}, name="turned")
    free = ir.node("MatMul", [one.outputs[0], turned.outputs[0]], name="free")
    product = ir.node("MatMul", [x, head], name="product")
    classes = ir.node("Add", [product.outputs[0], bias], name="classes")
    outputs = [one.outputs[0], free.outputs[0], classes.outputs[0]]
    for value, shape in zip(outputs, ([2, 4], [2, 2], [2, 4]), strict=True):
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(shape)
    scaled = ir.node("Identity", [one.outputs[0]], name="scaled")
    scaled.outputs[0].dtype, scaled.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([2, 4])
    nodes = [one, two, turned, free, product, classes, scaled]
    made = ir.Graph(
        [x], [scaled.outputs[0], *outputs[1:]], nodes=nodes, initializers=[weight, head, bias],
        opset_imports={"": 18}, name="g",
    )  # fmt: skip
    return ir.Model(made, ir_version=10), torch.randn(2, 4)


def test_layers_with_weights_alone_compute_in_half() -> None:
    model, x = graph()
    half_precision(model)
    by_name = {node.name: node for node in model.graph}
    for name, dtype in (("one", "FLOAT16"), ("two", "FLOAT16"), ("free", None), ("product", None)):
        node = by_name[name]
        inputs = {value.dtype.name for value in node.inputs if value.dtype is not None}
        assert ("FLOAT16" in inputs) == (dtype == "FLOAT16"), name
    assert by_name["one"].inputs[0] is by_name["two"].inputs[0], "x is cast once"
    assert sorted(model.graph.initializers) == sorted(["weight.half", "head", EXACT])
    assert model.graph.initializers["weight.half"].const_value.dtype.name == "FLOAT16"

    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    scaled, free, classes = (torch.from_numpy(y) for y in session.run(None, {"x": x.numpy()}))
    rounded = x.half().float() * (torch.ones(()) / 3).half().float()
    torch.testing.assert_close(scaled, rounded.half().float(), rtol=2e-3, atol=0)
    assert not torch.equal(scaled, x / 3)
    torch.testing.assert_close(free, scaled @ scaled.T)
    torch.testing.assert_close(classes, x / 3)
