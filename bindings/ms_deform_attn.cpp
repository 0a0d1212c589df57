#include "ms_deform_attn/ms_deform_attn.h"

#include "common/check.h"
#include "ops.h"
#include "scalar_arg.h"
#include "tensor_arg.h"

namespace py = pybind11;

namespace alignmask {

namespace {

/// What the two forms call themselves and their arguments.
struct Names {
  explicit Names(py::handle reference) {
    if (reference.is_none()) return;
    op = "ms_deform_attn_from_offsets";
    locations = "offsets";
    weights = "logits";
    grad_locations = "grad_offsets";
    grad_weights = "grad_logits";
  }
  const char *op = "ms_deform_attn", *locations = "locations", *weights = "weights", *grad_locations = "grad_locations",
             *grad_weights = "grad_weights";
};

/// h, w of level 0, h, w of level 1, ...
std::vector<MSDeformAttnLevel> levels_from(const char* op, py::handle level_shapes) {
  const std::vector<std::int64_t> sizes = ints_arg(op, "level_shapes", level_shapes);
  if (sizes.size() % 2) throw ValueError(std::string(op) + ": level_shapes must hold pairs (h, w)");
  std::vector<MSDeformAttnLevel> levels(sizes.size() / 2);
  for (std::size_t l = 0; l < levels.size(); ++l) levels[l] = {sizes[2 * l], sizes[2 * l + 1]};
  return levels;
}

void forward(py::handle out, py::handle value, py::handle level_shapes, py::handle locations, py::handle weights,
             py::handle threads, py::handle reference, py::handle stream) {
  const Names name(reference);
  MSDeformAttnArgs args;
  args.levels = levels_from(name.op, level_shapes);
  args.threads = int_arg(name.op, "threads", threads);
  args.stream = stream_arg(name.op, "stream", stream);
  const TensorArg out_arg(name.op, "out", out), value_arg(name.op, "value", value),
      locations_arg(name.op, name.locations, locations), weights_arg(name.op, name.weights, weights),
      reference_arg(name.op, "reference", reference);
  args.out = out_arg;
  args.value = value_arg;
  args.locations = locations_arg;
  args.weights = weights_arg;
  args.reference = reference_arg;
  without_gil(name.op, [&] { ms_deform_attn_forward(args); });
}

/// Arguments of backward, and the Python tensors behind them.
struct BackwardCall {
  BackwardCall(py::handle grad_value, py::handle grad_locations, py::handle grad_weights, py::handle grad_out,
               py::handle value, py::handle level_shapes, py::handle locations, py::handle weights,
               py::handle reference, py::handle grad_reference, py::handle deterministic,
               py::handle threads = py::int_(1), py::handle stream = py::int_(0))
      : name(reference),
        args(numbers(name.op, level_shapes, deterministic, threads, stream)),
        grad_value(name.op, "grad_value", grad_value),
        grad_locations(name.op, name.grad_locations, grad_locations),
        grad_weights(name.op, name.grad_weights, grad_weights),
        grad_reference(name.op, "grad_reference", grad_reference),
        grad_out(name.op, "grad_out", grad_out),
        value(name.op, "value", value),
        locations(name.op, name.locations, locations),
        weights(name.op, name.weights, weights),
        reference(name.op, "reference", reference) {
    args.grad_value = this->grad_value;
    args.grad_locations = this->grad_locations;
    args.grad_weights = this->grad_weights;
    args.grad_reference = this->grad_reference;
    args.grad_out = this->grad_out;
    args.value = this->value;
    args.locations = this->locations;
    args.weights = this->weights;
    args.reference = this->reference;
  }

  static MSDeformAttnArgs numbers(const char* op, py::handle level_shapes, py::handle deterministic, py::handle threads,
                                  py::handle stream) {
    MSDeformAttnArgs args;
    args.levels = levels_from(op, level_shapes);
    args.deterministic = bool_arg(op, "deterministic", deterministic);
    args.threads = int_arg(op, "threads", threads);
    args.stream = stream_arg(op, "stream", stream);
    return args;
  }

  Names name;
  MSDeformAttnArgs args;
  TensorArg grad_value, grad_locations, grad_weights, grad_reference, grad_out, value, locations, weights, reference;
};

void backward(py::handle grad_value, py::handle grad_locations, py::handle grad_weights, py::handle grad_out,
              py::handle value, py::handle level_shapes, py::handle locations, py::handle weights, py::handle threads,
              py::handle reference, py::handle grad_reference, py::handle deterministic, py::handle workspace,
              py::handle stream) {
  BackwardCall call(grad_value, grad_locations, grad_weights, grad_out, value, level_shapes, locations, weights,
                    reference, grad_reference, deterministic, threads, stream);
  const WorkspaceArg memory(call.name.op, workspace, [&] { return ms_deform_attn_backward_workspace(call.args); });
  call.args.workspace = memory;
  without_gil(call.name.op, [&] { ms_deform_attn_backward(call.args); });
}

std::int64_t backward_workspace(py::handle grad_value, py::handle grad_locations, py::handle grad_weights,
                                py::handle grad_out, py::handle value, py::handle level_shapes, py::handle locations,
                                py::handle weights, py::handle reference, py::handle grad_reference,
                                py::handle deterministic) {
  const BackwardCall call(grad_value, grad_locations, grad_weights, grad_out, value, level_shapes, locations, weights,
                          reference, grad_reference, deterministic);
  return ms_deform_attn_backward_workspace(call.args);
}

}  // namespace

void bind_ms_deform_attn(py::module_& module) {
  module.def("ms_deform_attn_forward", forward, py::arg("out"), py::arg("value"), py::arg("level_shapes"),
             py::arg("locations"), py::arg("weights"), py::arg("threads") = 1, py::arg("reference") = py::none(),
             py::arg("stream") = 0,
             "Write out. With reference, locations are offsets and weights are logits; see "
             "core/ms_deform_attn/ms_deform_attn.h.");
  module.def(
      "ms_deform_attn_backward", backward, py::arg("grad_value"), py::arg("grad_locations"), py::arg("grad_weights"),
      py::arg("grad_out"), py::arg("value"), py::arg("level_shapes"), py::arg("locations"), py::arg("weights"),
      py::arg("threads") = 1, py::arg("reference") = py::none(), py::arg("grad_reference") = py::none(),
      py::arg("deterministic") = false, py::arg("workspace") = py::none(), py::arg("stream") = 0,
      "Write the gradients that are not None; see core/ms_deform_attn/ms_deform_attn.h. workspace: as many bytes as "
      "ms_deform_attn_backward_workspace says, or a function that returns as many as it is asked for.");
  module.def("ms_deform_attn_backward_workspace", backward_workspace, py::arg("grad_value"), py::arg("grad_locations"),
             py::arg("grad_weights"), py::arg("grad_out"), py::arg("value"), py::arg("level_shapes"),
             py::arg("locations"), py::arg("weights"), py::arg("reference") = py::none(),
             py::arg("grad_reference") = py::none(), py::arg("deterministic") = false,
             "Bytes of workspace that ms_deform_attn_backward wants for these arguments; none on the CPU.");
}

}  // namespace alignmask
