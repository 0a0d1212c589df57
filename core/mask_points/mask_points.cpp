#include "mask_points.h"

#include <limits>
#include <string>

#include "common/check.h"
#include "common/cpu/dispatch.h"
#include "common/launch/launch.h"
#include "mask_points/cuda/launches.h"

namespace alignmask {

ALIGNMASK_FOR_EACH_ISA(void mask_points_forward_cpu(const MaskPointsArgs& args);)
ALIGNMASK_FOR_EACH_ISA(void mask_points_backward_cpu(const MaskPointsArgs& args);)

namespace {

// of a side: positions keep a bit behind the point in float32
constexpr std::int64_t kMostSide = std::int64_t{1} << 22;
constexpr std::int64_t kMostIndex = std::numeric_limits<std::int32_t>::max() - 1024;

void check_sides(const ArgumentCheck& check, const char* name, const char* letters) {
  for (const char* side = letters; *side; ++side)
    if (check.size(*side) > kMostSide)
      check.fail_value(std::string(name) + " has " + *side + " = " +
                       std::to_string(check.size(*side)) + ", at most " +
                       std::to_string(kMostSide) + " are supported");
}

/// `name`: of the tensor that has a row's pixels.
void check_map(const ArgumentCheck& check, const char* name) {
  check_sides(check, name, "HW");
  // with a border around it
  if ((check.size('H') + 2) * (check.size('W') + 2) > kMostIndex)
    check.fail_value(std::string(name) + " has H = " + std::to_string(check.size('H')) +
                     " and W = " + std::to_string(check.size('W')) +
                     ", too many pixels for 32-bit indices");
}

void check_points(const ArgumentCheck& check, std::int64_t candidates) {
  if (check.size('K') > kMostIndex - candidates)
    check.fail_value("K = " + std::to_string(check.size('K')) + " points and " +
                     std::to_string(candidates) + " candidates are too many for 32-bit indices");
  check.product("RK2");
}

}  // namespace

void mask_points_forward(const MaskPointsArgs& args) {
  ArgumentCheck check(MaskPointsArgs::op());
  check.input("logits", args.logits, "RHW", kFloats);
  check.input("index", args.index, "R", kInts);
  check.input("masks", args.masks, "Ghw", kMasks);
  check_map(check, "logits");
  check_sides(check, "masks", "hw");
  if (!args.points.present) check.fail_type("points is missing");
  if (!args.sampled.present) check.fail_type("sampled is missing");
  if (!args.targets.present) check.fail_type("targets is missing");
  const DType arithmetic = arithmetic_dtype(args.logits.dtype);
  check.output("points", args.points, "RK2", {arithmetic});
  check.output("sampled", args.sampled, "RK", {args.logits.dtype});
  check.output("targets", args.targets, "RK", {arithmetic});
  if (args.candidates < 0)
    check.fail_value("candidates must be at least 0, got " + std::to_string(args.candidates));
  if (args.kept < 0 || args.kept > args.candidates || args.kept > check.size('K'))
    check.fail_value("kept must be in [0, " +
                     std::to_string(std::min<std::int64_t>(args.candidates, check.size('K'))) +
                     "], got " + std::to_string(args.kept));
  check_points(check, args.candidates);
  check.in_range("index", args.index, 0, check.size('G'));
  if (uses_cuda_kernels(check.device()))
    return run({args.op(), check.device(), args.stream, &check},
               mask_points_forward_launches(args));
  ALIGNMASK_ON_CPU(mask_points_forward_cpu, args);
}

namespace {

ArgumentCheck check_backward(const MaskPointsArgs& args) {
  ArgumentCheck check(MaskPointsArgs::op());
  if (!args.grad_logits.present) check.fail_type("grad_logits is missing");
  check.output("grad_logits", args.grad_logits, "RHW", kFloats);
  check_map(check, "grad_logits");
  check.input("grad_sampled", args.grad_sampled, "RK", {args.grad_logits.dtype});
  check.input("points", args.points, "RK2", {arithmetic_dtype(args.grad_logits.dtype)});
  check_points(check, 0);
  return check;
}

}  // namespace

void mask_points_backward(const MaskPointsArgs& args) {
  const ArgumentCheck check = check_backward(args);
  if (uses_cuda_kernels(check.device())) {
    check.workspace(args.workspace, mask_points_backward_workspace_bytes(args));
    return run({args.op(), check.device(), args.stream, &check},
               mask_points_backward_launches(args));
  }
  ALIGNMASK_ON_CPU(mask_points_backward_cpu, args);
}

std::int64_t mask_points_backward_workspace(const MaskPointsArgs& args) {
  return uses_cuda_kernels(check_backward(args).device())
             ? mask_points_backward_workspace_bytes(args)
             : 0;
}

}  // namespace alignmask
