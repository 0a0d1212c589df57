#include "quality_focal_loss.h"

#include <cmath>

#include "common/check.h"
#include "common/cpu/dispatch.h"
#include "common/launch/launch.h"
#include "quality_focal_loss/cuda/launches.h"

namespace alignmask {

ALIGNMASK_FOR_EACH_ISA(void quality_focal_loss_forward_cpu(const QualityFocalLossArgs& args);)

void quality_focal_loss_forward(const QualityFocalLossArgs& args) {
  ArgumentCheck check(QualityFocalLossArgs::op());
  check.input("logits", args.logits, "RC", kFloats);
  check.input("label", args.label, "R", kInts);
  check.input("iou", args.iou, "R", kFloats);
  if (!(std::isfinite(args.gamma) && args.gamma >= 1))
    check.fail_value(
        "gamma must be finite and at least 1 (below, the gradient is unbounded), got " +
        to_string(args.gamma));
  if (!(args.theta >= 0 && args.theta < 1))
    check.fail_value("theta must be in [0, 1), got " + to_string(args.theta));
  if (!args.loss.present) check.fail_type("loss is missing");
  check.output("loss", args.loss, "R", {args.logits.dtype});
  check.output("grad_logits", args.grad_logits, "RC", {arithmetic_dtype(args.logits.dtype)});
  check.in_range("label", args.label, -1, check.size('C'));
  if (uses_cuda_kernels(check.device()))
    return run({args.op(), check.device(), args.stream, &check},
               quality_focal_loss_forward_launches(args));
  ALIGNMASK_ON_CPU(quality_focal_loss_forward_cpu, args);
}

}  // namespace alignmask
