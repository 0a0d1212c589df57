#include "mask_iou/mask_iou.h"

#include "op_function.h"

namespace alignmask {

void bind_mask_iou(pybind11::module_& module) {
  using Args = MaskIouArgs;
  def_op(module, "mask_iou_forward", mask_iou_forward, mask_iou_forward_workspace,
         "Write iou; see core/mask_iou/mask_iou.h.", tensor("iou", &Args::iou),
         tensor("predictions", &Args::predictions), tensor("targets", &Args::targets),
         tensor("owner", &Args::owner), scalar("threshold", &Args::threshold),
         scalar("threads", &Args::threads), workspace("workspace", &Args::workspace),
         stream("stream", &Args::stream));
}

}  // namespace alignmask
