#include "masked_point_pool/masked_point_pool.h"

#include "ops.h"
#include "scalar_arg.h"
#include "tensor_arg.h"

namespace py = pybind11;

namespace alignmask {

namespace {

constexpr const char* kOp = "masked_point_pool";

void forward(py::handle pooled, py::handle weight, py::handle features, py::handle masks, py::handle owner,
             py::handle points, py::handle divide_by_points, py::handle threads, py::handle stream) {
  MaskedPointPoolArgs args;
  args.divide_by_points = bool_arg(kOp, "divide_by_points", divide_by_points);
  args.threads = int_arg(kOp, "threads", threads);
  args.stream = stream_arg(kOp, "stream", stream);
  const TensorArg pooled_arg(kOp, "pooled", pooled), weight_arg(kOp, "weight", weight),
      features_arg(kOp, "features", features), masks_arg(kOp, "masks", masks), owner_arg(kOp, "owner", owner),
      points_arg(kOp, "points", points);
  args.pooled = pooled_arg;
  args.weight = weight_arg;
  args.features = features_arg;
  args.masks = masks_arg;
  args.owner = owner_arg;
  args.points = points_arg;
  without_gil(kOp, [&] { masked_point_pool_forward(args); });
}

/// Arguments of backward, and the Python tensors behind them.
struct BackwardCall {
  BackwardCall(py::handle grad_features, py::handle grad_pooled, py::handle weight, py::handle masks, py::handle owner,
               py::handle points, py::handle divide_by_points, py::handle deterministic,
               py::handle threads = py::int_(1), py::handle stream = py::int_(0))
      : args(numbers(divide_by_points, deterministic, threads, stream)),
        grad_features(kOp, "grad_features", grad_features),
        grad_pooled(kOp, "grad_pooled", grad_pooled),
        weight(kOp, "weight", weight),
        masks(kOp, "masks", masks),
        owner(kOp, "owner", owner),
        points(kOp, "points", points) {
    args.grad_features = this->grad_features;
    args.grad_pooled = this->grad_pooled;
    args.weight = this->weight;
    args.masks = this->masks;
    args.owner = this->owner;
    args.points = this->points;
  }

  static MaskedPointPoolArgs numbers(py::handle divide_by_points, py::handle deterministic, py::handle threads,
                                     py::handle stream) {
    MaskedPointPoolArgs args;
    args.divide_by_points = bool_arg(kOp, "divide_by_points", divide_by_points);
    args.deterministic = bool_arg(kOp, "deterministic", deterministic);
    args.threads = int_arg(kOp, "threads", threads);
    args.stream = stream_arg(kOp, "stream", stream);
    return args;
  }

  MaskedPointPoolArgs args;
  TensorArg grad_features, grad_pooled, weight, masks, owner, points;
};

void backward(py::handle grad_features, py::handle grad_pooled, py::handle weight, py::handle masks, py::handle owner,
              py::handle points, py::handle divide_by_points, py::handle threads, py::handle deterministic,
              py::handle workspace, py::handle stream) {
  BackwardCall call(grad_features, grad_pooled, weight, masks, owner, points, divide_by_points, deterministic, threads,
                    stream);
  const WorkspaceArg memory(kOp, workspace, [&] { return masked_point_pool_backward_workspace(call.args); });
  call.args.workspace = memory;
  without_gil(kOp, [&] { masked_point_pool_backward(call.args); });
}

std::int64_t backward_workspace(py::handle grad_features, py::handle grad_pooled, py::handle weight, py::handle masks,
                                py::handle owner, py::handle points, py::handle divide_by_points,
                                py::handle deterministic) {
  const BackwardCall call(grad_features, grad_pooled, weight, masks, owner, points, divide_by_points, deterministic);
  return masked_point_pool_backward_workspace(call.args);
}

}  // namespace

void bind_masked_point_pool(py::module_& module) {
  module.def("masked_point_pool_forward", forward, py::arg("pooled"), py::arg("weight"), py::arg("features"),
             py::arg("masks"), py::arg("owner"), py::arg("points"), py::arg("divide_by_points") = false,
             py::arg("threads") = 1, py::arg("stream") = 0,
             "Write pooled and weight; see core/masked_point_pool/masked_point_pool.h.");
  module.def("masked_point_pool_backward", backward, py::arg("grad_features"), py::arg("grad_pooled"),
             py::arg("weight"), py::arg("masks"), py::arg("owner"), py::arg("points"),
             py::arg("divide_by_points") = false, py::arg("threads") = 1, py::arg("deterministic") = false,
             py::arg("workspace") = py::none(), py::arg("stream") = 0,
             "Write grad_features; see core/masked_point_pool/masked_point_pool.h. workspace: as many bytes as "
             "masked_point_pool_backward_workspace says, or a function that returns as many as it is asked for.");
  module.def("masked_point_pool_backward_workspace", backward_workspace, py::arg("grad_features"),
             py::arg("grad_pooled"), py::arg("weight"), py::arg("masks"), py::arg("owner"), py::arg("points"),
             py::arg("divide_by_points") = false, py::arg("deterministic") = false,
             "Bytes of workspace that masked_point_pool_backward wants for these arguments; none on the CPU.");
}

}  // namespace alignmask
