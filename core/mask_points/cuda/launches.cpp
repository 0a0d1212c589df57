#include "launches.h"

#include "common/arena.h"
#include "common/launch/gradient_launch.h"
#include "params.h"

namespace alignmask {

namespace {

/// The parameters of both directions: `maps` are the logits or their gradient, and `sampled` are
/// the sampled logits or theirs.
MaskPointsParams params_for(const MaskPointsArgs& args, const TensorView& maps,
                            const TensorView& sampled) {
  const char* const op = MaskPointsArgs::op();
  MaskPointsParams params = {};
  params.points = args.points.data;
  copy_strides(maps, params.logits_strides);
  copy_strides(sampled, params.sampled_strides);
  copy_strides(args.points, params.points_strides);
  params.rows = checked_int(maps.shape[0], op, "R");
  params.height = checked_int(maps.shape[1], op, "H");
  params.width = checked_int(maps.shape[2], op, "W");
  params.points_per_row = checked_int(args.points.shape[1], op, "K");
  return params;
}

/// The gradient as [1, R, H, W], as which it is written.
TensorView with_four_dimensions(const TensorView& gradient) {
  TensorView four = gradient;
  four.dims = 4;
  four.shape[0] = 1;
  four.strides[0] = 0;
  for (int i = 0; i < 3; ++i) {
    four.shape[i + 1] = gradient.shape[i];
    four.strides[i + 1] = gradient.strides[i];
  }
  return four;
}

struct Backward {
  std::vector<Launch> launches;
  std::int64_t workspace_bytes = 0;
};

Backward plan_backward(const MaskPointsArgs& args, void* memory) {
  Backward plan;
  const TensorView& gradient = args.grad_logits;
  const std::int64_t elements = gradient.elements();
  if (elements == 0) return plan;
  MaskPointsParams params = params_for(args, gradient, args.grad_sampled);
  params.grad_logits = gradient.data;
  params.grad_sampled = args.grad_sampled.data;
  const DType dtype = gradient.dtype;
  const std::int64_t bytes = dtype == DType::kFloat64 ? 8 : 4;  // of the arithmetic type
  const std::string type = std::string("<") + kernel_type(dtype) + ">";

  if (args.deterministic) {
    params.ordered_tiles =
        static_cast<int>(blocks_for(std::int64_t{params.height} * params.width, kPointOrderedTile));
    plan.launches.push_back(
        make_launch("mask_points_ordered_backward" + type,
                    blocks_for(std::int64_t{params.rows} * params.ordered_tiles, 1),
                    kPointOrderedTile, params));
    return plan;
  }

  WorkspaceArena workspace(memory);
  const bool in_place = is_arithmetic(dtype) && is_contiguous(gradient) &&
                        is_aligned(gradient, 0, 16 / static_cast<int>(bytes));
  params.sums = in_place ? gradient.data : workspace.take<unsigned char>(elements * bytes);
  plan.launches.push_back(fill_zero_launch(params.sums, elements * bytes));
  if (params.points_per_row > 0) {
    params.point_blocks =
        static_cast<int>(blocks_for(params.points_per_row, kPointGradientThreads));
    plan.launches.push_back(
        make_launch("mask_points_backward" + type,
                    blocks_for(std::int64_t{params.rows} * params.point_blocks, 1),
                    kPointGradientThreads, params));
  }
  if (!in_place)
    plan.launches.push_back(
        write_gradient_launch(with_four_dimensions(gradient), params.sums, {0, 1, 2, 3}));
  plan.workspace_bytes = workspace.bytes();
  return plan;
}

}  // namespace

std::vector<Launch> mask_points_forward_launches(const MaskPointsArgs& args) {
  if (args.sampled.elements() == 0) return {};
  const char* const op = MaskPointsArgs::op();
  MaskPointsParams params = params_for(args, args.logits, args.sampled);
  params.logits = args.logits.data;
  params.masks = args.masks.data;
  params.index = args.index.data;
  params.sampled = args.sampled.data;
  params.targets = args.targets.data;
  copy_strides(args.masks, params.masks_strides);
  copy_strides(args.targets, params.targets_strides);
  params.index_stride = args.index.strides[0];
  params.index_wide = args.index.dtype == DType::kInt64;
  params.seed = args.seed;
  params.masks_count = checked_int(args.masks.shape[0], op, "G");
  params.mask_height = checked_int(args.masks.shape[1], op, "h");
  params.mask_width = checked_int(args.masks.shape[2], op, "w");
  params.candidates = args.candidates;
  params.kept = args.kept;
  return {make_launch(std::string("mask_points_forward<") + kernel_type(args.logits.dtype) + ">",
                      blocks_for(params.rows, 1), kPointThreads, params)};
}

std::vector<Launch> mask_points_backward_launches(const MaskPointsArgs& args) {
  return plan_backward(args, args.workspace.present ? args.workspace.data : nullptr).launches;
}

std::int64_t mask_points_backward_workspace_bytes(const MaskPointsArgs& args) {
  return plan_backward(args, nullptr).workspace_bytes;
}

}  // namespace alignmask
