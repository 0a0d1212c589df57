#include "mask_rle.h"

#include <limits>
#include <string>

#include "common/check.h"
#include "common/cpu/dispatch.h"
#include "common/launch/launch.h"
#include "mask_rle/cuda/launches.h"

namespace alignmask {

ALIGNMASK_FOR_EACH_ISA(void mask_rle_forward_cpu(const MaskRleArgs& args);
                       void mask_rle_counts_forward_cpu(const MaskRleArgs& args);)

namespace {

std::string size_string(std::int64_t height, std::int64_t width) {
  return "(" + std::to_string(height) + ", " + std::to_string(width) + ")";
}

/// The logits, the sizes, and `columns`, a tensor [N, W].
ArgumentCheck check_input(const MaskRleArgs& args) {
  ArgumentCheck check(MaskRleArgs::op());
  check.input("logits", args.logits, "Nhw", kFloats);
  // Memory for a column of these sizes is taken, and no tensor shows how much that is.
  constexpr std::int64_t kLongestSide = 1 << 24;
  const auto sides = [&](const char* name, std::int64_t height, std::int64_t width) {
    if (height < 1 || width < 1)
      check.fail_value(std::string(name) + " must be of 1 pixel or more a side, got " +
                       size_string(height, width));
    if (height > kLongestSide || width > kLongestSide)
      check.fail_value(std::string(name) + " " + size_string(height, width) +
                       " has a side of more than 2^24 pixels, whose places float32 cannot tell "
                       "apart");
  };
  sides("logits", check.size('h'), check.size('w'));
  sides("size", args.height, args.width);
  sides("padded", args.padded_height, args.padded_width);
  sides("valid", args.valid_height, args.valid_width);
  if (args.valid_height > args.padded_height || args.valid_width > args.padded_width)
    check.fail_value("valid " + size_string(args.valid_height, args.valid_width) +
                     " must lie within padded " +
                     size_string(args.padded_height, args.padded_width));
  if (std::int64_t{args.height} * args.width > std::numeric_limits<std::int32_t>::max())
    check.fail_value("size " + size_string(args.height, args.width) +
                     " has 2^31 pixels or more, which a count cannot hold");
  return check;
}

void check_columns(const ArgumentCheck& check, const char* name, const MaskRleArgs& args,
                   const TensorView& columns) {
  if (columns.shape[1] != args.width)
    check.fail_value(std::string(name) + " (NW) must have W = " + std::to_string(args.width) +
                     ", got " + shape_string(columns));
}

ArgumentCheck check_forward(const MaskRleArgs& args) {
  ArgumentCheck check = check_input(args);
  const auto require = [&](const char* name, const TensorView& tensor) {
    if (!tensor.present) check.fail_type(std::string(name) + " is missing");
  };
  require("runs", args.runs);
  require("area", args.area);
  require("box", args.box);
  require("probability", args.probability);
  check.output("runs", args.runs, "NW", {DType::kInt32});
  check.output("area", args.area, "N", {DType::kInt64});
  check.output("box", args.box, "N4", {DType::kInt64});
  check.output("probability", args.probability, "N", {arithmetic_dtype(args.logits.dtype)});
  check_columns(check, "runs", args, args.runs);
  return check;
}

ArgumentCheck check_counts(const MaskRleArgs& args) {
  ArgumentCheck check = check_input(args);
  check.input("ends", args.ends, "NW", {DType::kInt64});
  if (!args.counts.present) check.fail_type("counts is missing");
  check.output("counts", args.counts, "R", {DType::kInt32});
  check_columns(check, "ends", args, args.ends);
  if (check.device().type != DeviceType::kCPU) return check;
  std::int64_t before = 0;
  for (std::int64_t n = 0; n < args.ends.shape[0]; ++n) {
    for (std::int64_t x = 0; x < args.width; ++x) {
      const std::int64_t end =
          int_at(args.ends, n * args.ends.strides[0] + x * args.ends.strides[1]);
      if (end < before || end > args.counts.shape[0])
        check.fail_value("ends[" + std::to_string(n) + ", " + std::to_string(x) +
                         "] = " + std::to_string(end) + " must be between the one before, " +
                         std::to_string(before) + ", and the number of counts, " +
                         std::to_string(args.counts.shape[0]));
      before = end;
    }
  }
  return check;
}

}  // namespace

void mask_rle_forward(const MaskRleArgs& args) {
  const ArgumentCheck check = check_forward(args);
  if (uses_cuda_kernels(check.device())) {
    check.workspace(args.workspace, mask_rle_forward_workspace_bytes(args));
    return run({args.op(), check.device(), args.stream, &check}, mask_rle_forward_launches(args));
  }
  ALIGNMASK_ON_CPU(mask_rle_forward_cpu, args);
}

void mask_rle_counts_forward(const MaskRleArgs& args) {
  const ArgumentCheck check = check_counts(args);
  if (uses_cuda_kernels(check.device())) {
    check.workspace(args.workspace, mask_rle_counts_forward_workspace_bytes(args));
    return run({args.op(), check.device(), args.stream, &check},
               mask_rle_counts_forward_launches(args));
  }
  ALIGNMASK_ON_CPU(mask_rle_counts_forward_cpu, args);
}

std::int64_t mask_rle_forward_workspace(const MaskRleArgs& args) {
  return uses_cuda_kernels(check_forward(args).device()) ? mask_rle_forward_workspace_bytes(args)
                                                         : 0;
}

std::int64_t mask_rle_counts_forward_workspace(const MaskRleArgs& args) {
  return uses_cuda_kernels(check_counts(args).device())
             ? mask_rle_counts_forward_workspace_bytes(args)
             : 0;
}

}  // namespace alignmask
