#include "masked_point_pool.h"

#include <string>

#include "common/check.h"
#include "common/cpu/dispatch.h"
#include "common/launch/launch.h"
#include "masked_point_pool/cuda/launches.h"

namespace alignmask {

ALIGNMASK_FOR_EACH_ISA(void masked_point_pool_forward_cpu(const MaskedPointPoolArgs& args);)
ALIGNMASK_FOR_EACH_ISA(void masked_point_pool_backward_cpu(const MaskedPointPoolArgs& args);)

namespace {

// pixels of a side, points and slots have 32-bit indices
constexpr std::int64_t kMostIndex = (std::int64_t{1} << 31) - 4;

/// args.features, which the caller calls `features`, has been checked as `check`'s first tensor.
void check_inputs(ArgumentCheck& check, const char* features, const MaskedPointPoolArgs& args) {
  const DType dtype = args.features.dtype;
  check.input("points", args.points, "BTK2", {dtype, arithmetic_dtype(dtype)});
  check.input("owner", args.owner, "G", kInts);
  check.input("masks", args.masks, "Ghw", kMasks);
  for (const char side : {'H', 'W'}) {
    if (check.size(side) > kMostIndex)
      check.fail_value(std::string(features) + " has " + std::string(1, side) + " = " +
                       std::to_string(check.size(side)) + ", too many pixels for 32-bit indices");
  }
  std::int64_t points = 0, slots = 0;
  if (__builtin_mul_overflow(check.size('T'), check.size('K'), &points) || points > kMostIndex ||
      __builtin_mul_overflow(check.size('T'), check.size('G'), &slots) || slots > kMostIndex)
    check.fail_value("points has T = " + std::to_string(check.size('T')) + " sets of K = " +
                     std::to_string(check.size('K')) + ", too many for 32-bit indices");
  check.product("GTK");
  check.product("TKC");
  check.in_range("owner", args.owner, 0, check.size('B'));
}

}  // namespace

void masked_point_pool_forward(const MaskedPointPoolArgs& args) {
  ArgumentCheck check(MaskedPointPoolArgs::op());
  check.input("features", args.features, "BCHW", kFloats);
  check_inputs(check, "features", args);
  if (!args.pooled.present) check.fail_type("pooled is missing");
  if (!args.weight.present) check.fail_type("weight is missing");
  check.output("pooled", args.pooled, "GTC", {args.features.dtype});
  check.output("weight", args.weight, "GT", {arithmetic_dtype(args.features.dtype)});
  if (uses_cuda_kernels(check.device()))
    return run({args.op(), check.device(), args.stream, &check},
               masked_point_pool_forward_launches(args));
  ALIGNMASK_ON_CPU(masked_point_pool_forward_cpu, args);
}

namespace {

/// The features themselves have no part in their gradient: that gives the sizes.
MaskedPointPoolArgs sized_by_gradient(const MaskedPointPoolArgs& args) {
  MaskedPointPoolArgs sized = args;
  sized.features = args.grad_features;
  return sized;
}

ArgumentCheck check_backward(const MaskedPointPoolArgs& args) {
  ArgumentCheck check(MaskedPointPoolArgs::op());
  if (!args.grad_features.present) check.fail_type("grad_features is missing");
  check.output("grad_features", args.grad_features, "BCHW", kFloats);
  check_inputs(check, "grad_features", sized_by_gradient(args));
  check.input("grad_pooled", args.grad_pooled, "GTC", {args.grad_features.dtype});
  check.input("weight", args.weight, "GT", {arithmetic_dtype(args.grad_features.dtype)});
  return check;
}

}  // namespace

void masked_point_pool_backward(const MaskedPointPoolArgs& args) {
  const ArgumentCheck check = check_backward(args);
  if (uses_cuda_kernels(check.device())) {
    check.workspace(args.workspace, masked_point_pool_backward_workspace_bytes(args));
    return run({args.op(), check.device(), args.stream, &check},
               masked_point_pool_backward_launches(args));
  }
  ALIGNMASK_ON_CPU(masked_point_pool_backward_cpu, sized_by_gradient(args));
}

std::int64_t masked_point_pool_backward_workspace(const MaskedPointPoolArgs& args) {
  return uses_cuda_kernels(check_backward(args).device())
             ? masked_point_pool_backward_workspace_bytes(args)
             : 0;
}

}  // namespace alignmask
