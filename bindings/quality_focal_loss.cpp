#include "quality_focal_loss/quality_focal_loss.h"

#include "ops.h"
#include "scalar_arg.h"
#include "tensor_arg.h"

namespace py = pybind11;

namespace alignmask {

namespace {

constexpr const char* kOp = "quality_focal_loss";

void forward(py::handle loss, py::handle grad_logits, py::handle logits, py::handle label, py::handle iou,
             py::handle gamma, py::handle theta, py::handle threads, py::handle stream) {
  QualityFocalLossArgs args;
  args.gamma = number_arg(kOp, "gamma", gamma);
  args.theta = number_arg(kOp, "theta", theta);
  args.threads = int_arg(kOp, "threads", threads);
  args.stream = stream_arg(kOp, "stream", stream);
  const TensorArg loss_arg(kOp, "loss", loss), grad_arg(kOp, "grad_logits", grad_logits),
      logits_arg(kOp, "logits", logits), label_arg(kOp, "label", label), iou_arg(kOp, "iou", iou);
  args.loss = loss_arg;
  args.grad_logits = grad_arg;
  args.logits = logits_arg;
  args.label = label_arg;
  args.iou = iou_arg;
  without_gil(kOp, [&] { quality_focal_loss_forward(args); });
}

}  // namespace

void bind_quality_focal_loss(py::module_& module) {
  module.def("quality_focal_loss_forward", forward, py::arg("loss"), py::arg("grad_logits"), py::arg("logits"),
             py::arg("label"), py::arg("iou"), py::arg("gamma") = 2.0, py::arg("theta") = 0.5, py::arg("threads") = 1,
             py::arg("stream") = 0,
             "Write loss and, unless it is None, grad_logits; see core/quality_focal_loss/quality_focal_loss.h.");
}

}  // namespace alignmask
