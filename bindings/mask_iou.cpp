#include "../core/mask_iou/mask_iou.h"

#include "ops.h"
#include "tensor_arg.h"

namespace py = pybind11;

namespace alignmask {

namespace {

constexpr const char* kOp = "mask_iou";

void forward(py::handle iou, py::handle predictions, py::handle targets, py::handle owner, double threshold,
             int threads) {
  const TensorArg iou_arg(kOp, "iou", iou), predictions_arg(kOp, "predictions", predictions),
      targets_arg(kOp, "targets", targets), owner_arg(kOp, "owner", owner);
  MaskIouArgs args;
  args.iou = iou_arg;
  args.predictions = predictions_arg;
  args.targets = targets_arg;
  args.owner = owner_arg;
  args.threshold = threshold;
  args.threads = threads;
  const py::gil_scoped_release released;
  mask_iou_forward(args);
}

}  // namespace

void bind_mask_iou(py::module_& module) {
  module.def("mask_iou_forward", forward, py::arg("iou"), py::arg("predictions"), py::arg("targets"), py::arg("owner"),
             py::arg("threshold") = 0.0, py::arg("threads") = 1, "Write iou; see core/mask_iou/mask_iou.h.");
}

}  // namespace alignmask
