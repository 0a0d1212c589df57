#include "mask_iou/mask_iou.h"

#include "ops.h"
#include "scalar_arg.h"
#include "tensor_arg.h"

namespace py = pybind11;

namespace alignmask {

namespace {

constexpr const char* kOp = "mask_iou";

struct ForwardCall {
  ForwardCall(py::handle iou, py::handle predictions, py::handle targets, py::handle owner, py::handle threshold,
              py::handle threads, py::handle stream)
      : args(numbers(threshold, threads, stream)),
        iou(kOp, "iou", iou),
        predictions(kOp, "predictions", predictions),
        targets(kOp, "targets", targets),
        owner(kOp, "owner", owner) {
    args.iou = this->iou;
    args.predictions = this->predictions;
    args.targets = this->targets;
    args.owner = this->owner;
  }

  static MaskIouArgs numbers(py::handle threshold, py::handle threads, py::handle stream) {
    MaskIouArgs args;
    args.threshold = number_arg(kOp, "threshold", threshold);
    args.threads = int_arg(kOp, "threads", threads);
    args.stream = stream_arg(kOp, "stream", stream);
    return args;
  }

  MaskIouArgs args;
  TensorArg iou, predictions, targets, owner;
};

void forward(py::handle iou, py::handle predictions, py::handle targets, py::handle owner, py::handle threshold,
             py::handle threads, py::handle workspace, py::handle stream) {
  ForwardCall call(iou, predictions, targets, owner, threshold, threads, stream);
  const WorkspaceArg memory(kOp, workspace, [&] { return mask_iou_forward_workspace(call.args); });
  call.args.workspace = memory;
  without_gil(kOp, [&] { mask_iou_forward(call.args); });
}

std::int64_t forward_workspace(py::handle iou, py::handle predictions, py::handle targets, py::handle owner) {
  return mask_iou_forward_workspace(
      ForwardCall(iou, predictions, targets, owner, py::int_(0), py::int_(1), py::int_(0)).args);
}

}  // namespace

void bind_mask_iou(py::module_& module) {
  module.def(
      "mask_iou_forward", forward, py::arg("iou"), py::arg("predictions"), py::arg("targets"), py::arg("owner"),
      py::arg("threshold") = 0.0, py::arg("threads") = 1, py::arg("workspace") = py::none(), py::arg("stream") = 0,
      "Write iou; see core/mask_iou/mask_iou.h. workspace: as many bytes as mask_iou_forward_workspace says, or a "
      "function that returns as many as it is asked for.");
  module.def("mask_iou_forward_workspace", forward_workspace, py::arg("iou"), py::arg("predictions"),
             py::arg("targets"), py::arg("owner"),
             "Bytes of workspace that mask_iou_forward wants for these arguments; none on the CPU.");
}

}  // namespace alignmask
