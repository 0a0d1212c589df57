#include "../core/mask_iou/mask_iou.h"

#include "ops.h"
#include "tensor_arg.h"

namespace py = pybind11;

namespace alignmask {

namespace {

constexpr const char* kOp = "mask_iou";

struct ForwardCall {
  ForwardCall(py::handle iou, py::handle predictions, py::handle targets, py::handle owner, double threshold,
              py::handle workspace)
      : iou(kOp, "iou", iou),
        predictions(kOp, "predictions", predictions),
        targets(kOp, "targets", targets),
        owner(kOp, "owner", owner),
        workspace(kOp, "workspace", workspace) {
    args.iou = this->iou;
    args.predictions = this->predictions;
    args.targets = this->targets;
    args.owner = this->owner;
    args.threshold = threshold;
    args.workspace = this->workspace;
  }

  TensorArg iou, predictions, targets, owner, workspace;
  MaskIouArgs args;
};

void forward(py::handle iou, py::handle predictions, py::handle targets, py::handle owner, double threshold,
             int threads, py::handle workspace, std::uintptr_t stream) {
  ForwardCall call(iou, predictions, targets, owner, threshold, workspace);
  call.args.threads = threads;
  call.args.stream = reinterpret_cast<void*>(stream);
  const py::gil_scoped_release released;
  mask_iou_forward(call.args);
}

std::int64_t forward_workspace(py::handle iou, py::handle predictions, py::handle targets, py::handle owner) {
  return mask_iou_forward_workspace(ForwardCall(iou, predictions, targets, owner, 0, py::none()).args);
}

}  // namespace

void bind_mask_iou(py::module_& module) {
  module.def("mask_iou_forward", forward, py::arg("iou"), py::arg("predictions"), py::arg("targets"), py::arg("owner"),
             py::arg("threshold") = 0.0, py::arg("threads") = 1, py::arg("workspace") = py::none(),
             py::arg("stream") = 0, "Write iou; see core/mask_iou/mask_iou.h.");
  module.def("mask_iou_forward_workspace", forward_workspace, py::arg("iou"), py::arg("predictions"),
             py::arg("targets"), py::arg("owner"),
             "Bytes of workspace that mask_iou_forward wants for these arguments; none on the CPU.");
}

}  // namespace alignmask
