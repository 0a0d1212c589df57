#include "../core/masked_point_pool/masked_point_pool.h"

#include "ops.h"
#include "tensor_arg.h"

namespace py = pybind11;

namespace alignmask {

namespace {

constexpr const char* kOp = "masked_point_pool";

void forward(py::handle pooled, py::handle weight, py::handle features, py::handle masks, py::handle owner,
             py::handle points, bool divide_by_points, int threads) {
  const TensorArg pooled_arg(kOp, "pooled", pooled), weight_arg(kOp, "weight", weight),
      features_arg(kOp, "features", features), masks_arg(kOp, "masks", masks), owner_arg(kOp, "owner", owner),
      points_arg(kOp, "points", points);
  MaskedPointPoolArgs args;
  args.pooled = pooled_arg;
  args.weight = weight_arg;
  args.features = features_arg;
  args.masks = masks_arg;
  args.owner = owner_arg;
  args.points = points_arg;
  args.divide_by_points = divide_by_points;
  args.threads = threads;
  const py::gil_scoped_release released;
  masked_point_pool_forward(args);
}

void backward(py::handle grad_features, py::handle grad_pooled, py::handle weight, py::handle masks, py::handle owner,
              py::handle points, bool divide_by_points, int threads) {
  const TensorArg grad_features_arg(kOp, "grad_features", grad_features),
      grad_pooled_arg(kOp, "grad_pooled", grad_pooled), weight_arg(kOp, "weight", weight),
      masks_arg(kOp, "masks", masks), owner_arg(kOp, "owner", owner), points_arg(kOp, "points", points);
  MaskedPointPoolArgs args;
  args.grad_features = grad_features_arg;
  args.grad_pooled = grad_pooled_arg;
  args.weight = weight_arg;
  args.masks = masks_arg;
  args.owner = owner_arg;
  args.points = points_arg;
  args.divide_by_points = divide_by_points;
  args.threads = threads;
  const py::gil_scoped_release released;
  masked_point_pool_backward(args);
}

}  // namespace

void bind_masked_point_pool(py::module_& module) {
  module.def("masked_point_pool_forward", forward, py::arg("pooled"), py::arg("weight"), py::arg("features"),
             py::arg("masks"), py::arg("owner"), py::arg("points"), py::arg("divide_by_points") = false,
             py::arg("threads") = 1, "Write pooled and weight; see core/masked_point_pool/masked_point_pool.h.");
  module.def("masked_point_pool_backward", backward, py::arg("grad_features"), py::arg("grad_pooled"),
             py::arg("weight"), py::arg("masks"), py::arg("owner"), py::arg("points"),
             py::arg("divide_by_points") = false, py::arg("threads") = 1,
             "Write grad_features; see core/masked_point_pool/masked_point_pool.h.");
}

}  // namespace alignmask
