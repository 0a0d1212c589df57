#include "../core/ms_deform_attn/ms_deform_attn.h"

#include <pybind11/stl.h>

#include "../core/common/check.h"
#include "ops.h"
#include "tensor_arg.h"

namespace py = pybind11;

namespace alignmask {

namespace {

constexpr const char* kOp = "ms_deform_attn";

/// h, w of level 0, h, w of level 1, ...
std::vector<MSDeformAttnLevel> levels_from(const std::vector<std::int64_t>& sizes) {
  if (sizes.size() % 2) throw ValueError(std::string(kOp) + ": level_shapes must hold pairs (h, w)");
  std::vector<MSDeformAttnLevel> levels(sizes.size() / 2);
  for (std::size_t l = 0; l < levels.size(); ++l) levels[l] = {sizes[2 * l], sizes[2 * l + 1]};
  return levels;
}

void forward(py::handle out, py::handle value, const std::vector<std::int64_t>& level_shapes, py::handle locations,
             py::handle weights, int threads) {
  const TensorArg out_arg(kOp, "out", out), value_arg(kOp, "value", value), locations_arg(kOp, "locations", locations),
      weights_arg(kOp, "weights", weights);
  MSDeformAttnArgs args;
  args.out = out_arg;
  args.value = value_arg;
  args.levels = levels_from(level_shapes);
  args.locations = locations_arg;
  args.weights = weights_arg;
  args.threads = threads;
  const py::gil_scoped_release released;
  ms_deform_attn_forward(args);
}

void backward(py::handle grad_value, py::handle grad_locations, py::handle grad_weights, py::handle grad_out,
              py::handle value, const std::vector<std::int64_t>& level_shapes, py::handle locations, py::handle weights,
              int threads) {
  const TensorArg grad_value_arg(kOp, "grad_value", grad_value),
      grad_locations_arg(kOp, "grad_locations", grad_locations), grad_weights_arg(kOp, "grad_weights", grad_weights),
      grad_out_arg(kOp, "grad_out", grad_out), value_arg(kOp, "value", value),
      locations_arg(kOp, "locations", locations), weights_arg(kOp, "weights", weights);
  MSDeformAttnArgs args;
  args.grad_value = grad_value_arg;
  args.grad_locations = grad_locations_arg;
  args.grad_weights = grad_weights_arg;
  args.grad_out = grad_out_arg;
  args.value = value_arg;
  args.levels = levels_from(level_shapes);
  args.locations = locations_arg;
  args.weights = weights_arg;
  args.threads = threads;
  const py::gil_scoped_release released;
  ms_deform_attn_backward(args);
}

}  // namespace

void bind_ms_deform_attn(py::module_& module) {
  module.def("ms_deform_attn_forward", forward, py::arg("out"), py::arg("value"), py::arg("level_shapes"),
             py::arg("locations"), py::arg("weights"), py::arg("threads") = 1,
             "Write out; see core/ms_deform_attn/ms_deform_attn.h.");
  module.def("ms_deform_attn_backward", backward, py::arg("grad_value"), py::arg("grad_locations"),
             py::arg("grad_weights"), py::arg("grad_out"), py::arg("value"), py::arg("level_shapes"),
             py::arg("locations"), py::arg("weights"), py::arg("threads") = 1,
             "Write the gradients that are not None; see core/ms_deform_attn/ms_deform_attn.h.");
}

}  // namespace alignmask
