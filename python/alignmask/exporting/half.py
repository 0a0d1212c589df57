"""Half precision for an ONNX graph: the layers with weights compute in float16.

Convolutions and products with weights are nearly all of a model's weights and most of its work.
What lies between them stays float32, as under torch's autocast: float16 cannot resolve sampling
positions in a large map, and sums over the pixels of a mask are beyond its range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

LAYERS = ("Conv", "Gemm", "MatMul")
EXACT = "model.query_decoder.heads.classify.bias"
"""The bias of the class head, by which its products are known: half precision would give different
predictions the same score."""


def half_precision(model: ir.Model) -> None:
    """Change the graph: the weights of `LAYERS` are stored in float16, and what these layers read
    is cast to float16, and what they return back to float32."""
    import numpy as np
    import onnx_ir as ir

    graph = model.graph
    stored: dict[str, ir.Value] = {}
    lowered: dict[ir.Value, ir.Value] = {}

    def weight(value: ir.Value) -> ir.Value:
        assert value.name is not None
        if value.name not in stored:
            assert value.const_value is not None
            array = value.const_value.numpy().astype(np.float16)
            stored[value.name] = ir.val(
                f"{value.name}.half", const_value=ir.tensor(array, name=f"{value.name}.half")
            )
            graph.initializers.add(stored[value.name])
        return stored[value.name]

    for node in list(graph):
        constants = [value for value in node.inputs if value is not None and value.is_initializer()]
        if node.op_type not in LAYERS or not constants:
            continue
        if EXACT in [value.name for value in (*constants, *_added(node))]:
            continue
        for number, value in enumerate(node.inputs):
            if value is None:
                continue
            if value.is_initializer():
                node.replace_input_with(number, weight(value))
                continue
            if value not in lowered:
                cast = _cast(value, ir.DataType.FLOAT16)
                graph.insert_before(node, cast)
                lowered[value] = cast.outputs[0]
            node.replace_input_with(number, lowered[value])
        (result,) = node.outputs
        back = _cast(result, ir.DataType.FLOAT)
        graph.insert_after(node, back)
        for user, number in list(result.uses()):
            if user is not back:
                user.replace_input_with(number, back.outputs[0])
        result.dtype = ir.DataType.FLOAT16
    for name in list(graph.initializers):
        if not graph.initializers[name].uses():
            del graph.initializers[name]


def _added(node: ir.Node) -> list[ir.Value]:
    """What is added to what a node returns: the bias of a product."""
    (result,) = node.outputs
    sums = [user for user, _ in result.uses() if user.op_type == "Add"]
    return [value for user in sums for value in user.inputs if value is not None]


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    import onnx_ir as ir

    node = ir.node("Cast", [value], {"to": dtype})
    node.outputs[0].dtype, node.outputs[0].shape = dtype, value.shape
    return node
