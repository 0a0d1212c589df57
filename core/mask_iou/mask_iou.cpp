#include "mask_iou.h"

#include <string>

#include "common/check.h"
#include "common/cpu/dispatch.h"
#include "common/launch/launch.h"
#include "mask_iou/cuda/launches.h"

namespace alignmask {

ALIGNMASK_FOR_EACH_ISA(void mask_iou_forward_cpu(const MaskIouArgs& args);)

namespace {

ArgumentCheck check_forward(const MaskIouArgs& args) {
  ArgumentCheck check(MaskIouArgs::op());
  check.input("predictions", args.predictions, "BQhw", kFloats);
  check.input("owner", args.owner, "G", kInts);
  check.input("targets", args.targets, "GHW", kMasks);
  const std::int64_t h = check.size('h'), w = check.size('w'), H = check.size('H'),
                     W = check.size('W');
  if ((H != h || W != w) && (h == 0 || w == 0 || H == 0 || H % h || W % w || H / h != W / w)) {
    check.fail_value("targets must have the predictions' size (" + std::to_string(h) + ", " +
                     std::to_string(w) + ") or the same integer multiple of both sides, got (" +
                     std::to_string(H) + ", " + std::to_string(W) + ")");
  }
  check.product("BQHW");
  if (!args.iou.present) check.fail_type("iou is missing");
  check.output("iou", args.iou, "GQ", {arithmetic_dtype(args.predictions.dtype)});
  check.in_range("owner", args.owner, 0, check.size('B'));
  return check;
}

}  // namespace

void mask_iou_forward(const MaskIouArgs& args) {
  const ArgumentCheck check = check_forward(args);
  if (uses_cuda_kernels(check.device())) {
    check.workspace(args.workspace, mask_iou_forward_workspace_bytes(args));
    return run({args.op(), check.device(), args.stream, &check}, mask_iou_forward_launches(args));
  }
  ALIGNMASK_ON_CPU(mask_iou_forward_cpu, args);
}

std::int64_t mask_iou_forward_workspace(const MaskIouArgs& args) {
  return uses_cuda_kernels(check_forward(args).device()) ? mask_iou_forward_workspace_bytes(args)
                                                         : 0;
}

}  // namespace alignmask
