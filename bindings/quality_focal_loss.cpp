#include "quality_focal_loss/quality_focal_loss.h"

#include "op_function.h"

namespace alignmask {

void bind_quality_focal_loss(pybind11::module_& module) {
  using Args = QualityFocalLossArgs;
  def_op(module, "quality_focal_loss_forward", quality_focal_loss_forward,
         "Write loss and, unless it is None, grad_logits; see "
         "core/quality_focal_loss/quality_focal_loss.h.",
         tensor("loss", &Args::loss),                //
         tensor("grad_logits", &Args::grad_logits),  //
         tensor("logits", &Args::logits),            //
         tensor("label", &Args::label),              //
         tensor("iou", &Args::iou),                  //
         scalar("gamma", &Args::gamma),              //
         scalar("theta", &Args::theta),              //
         scalar("threads", &Args::threads),          //
         stream("stream", &Args::stream));
}

}  // namespace alignmask
