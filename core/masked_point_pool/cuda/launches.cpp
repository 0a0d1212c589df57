#include "launches.h"

#include <algorithm>
#include <limits>

#include "common/arena.h"
#include "common/launch/gradient_launch.h"
#include "params.h"

namespace alignmask {

namespace {

/// Between pixels of features; 0 if they do not fit.
int pixel_bytes(const TensorView& features) {
  const std::int64_t bytes = features.strides[3] * element_bytes(features.dtype);
  return bytes > 0 && bytes <= std::numeric_limits<int>::max() ? static_cast<int>(bytes) : 0;
}

/// Everything but pooled and features, which depend on the direction; `features`: those, or their
/// gradient.
MaskedPointPoolParams params_for(const MaskedPointPoolArgs& args, const TensorView& features) {
  MaskedPointPoolParams params = {};
  params.masks = args.masks.data;
  params.owner = args.owner.data;
  params.points = args.points.data;
  params.weight = args.weight.data;
  copy_strides(features, params.features_strides);
  params.pixel_bytes = pixel_bytes(features);
  copy_strides(args.masks, params.masks_strides);
  params.owner_stride = args.owner.strides[0];
  copy_strides(args.points, params.points_strides);
  copy_strides(args.weight, params.weight_strides);
  params.owner_wide = args.owner.dtype == DType::kInt64;
  params.points_wide = is_arithmetic(args.points.dtype);
  params.divide_by_points = args.divide_by_points;

  params.images = checked_int(features.shape[0], MaskedPointPoolArgs::op(), "B");
  params.channels = checked_int(features.shape[1], MaskedPointPoolArgs::op(), "C");
  params.height = checked_int(features.shape[2], MaskedPointPoolArgs::op(), "H");
  params.width = checked_int(features.shape[3], MaskedPointPoolArgs::op(), "W");
  checked_int(features.shape[2] * features.shape[3] + pool_ordered_tile(4),
              MaskedPointPoolArgs::op(), "H·W");
  params.instances = checked_int(args.masks.shape[0], MaskedPointPoolArgs::op(), "G");
  params.mask_height = checked_int(args.masks.shape[1], MaskedPointPoolArgs::op(), "h");
  params.mask_width = checked_int(args.masks.shape[2], MaskedPointPoolArgs::op(), "w");
  params.sets = checked_int(args.points.shape[1], MaskedPointPoolArgs::op(), "T");
  params.points_per_set = checked_int(args.points.shape[2], MaskedPointPoolArgs::op(), "K");
  checked_int(args.points.shape[1] * args.points.shape[2] + kPoolThreads, MaskedPointPoolArgs::op(),
              "T·K");
  params.by_width = FastDivide(static_cast<unsigned>(std::max(params.width, 1)));
  params.by_points = FastDivide(static_cast<unsigned>(std::max(params.points_per_set, 1)));
  return params;
}

/// Can lanes read `vector` channels of a pixel at once, and find a pixel by its number?
bool is_packed(const TensorView& features, int vector) {
  return pixel_bytes(features) != 0 && features.strides[1] == 1 &&
         features.shape[1] % vector == 0 &&
         (features.shape[2] == 1 ||
          features.strides[2] == features.shape[3] * features.strides[3]) &&
         features.strides[0] % vector == 0 && is_aligned(features, 0, vector) &&
         features.strides[3] % vector == 0;
}

/// Is the tensor contiguous as [B, H, W, C]?
bool is_channels_last(const TensorView& features) {
  TensorView turned = features;
  const int order[] = {0, 2, 3, 1};
  for (int i = 0; i < 4; ++i) {
    turned.shape[i] = features.shape[order[i]];
    turned.strides[i] = features.strides[order[i]];
  }
  return is_contiguous(turned);
}

struct Backward {
  std::vector<Launch> launches;
  std::int64_t workspace_bytes = 0;
};

Backward plan_backward(const MaskedPointPoolArgs& args, void* memory) {
  Backward plan;
  const TensorView& gradient = args.grad_features;
  const std::int64_t elements = gradient.elements();
  if (elements == 0) return plan;
  MaskedPointPoolParams params = params_for(args, gradient);
  params.grad_features = gradient.data;
  params.grad_pooled = args.grad_pooled.data;
  copy_strides(args.grad_pooled, params.pooled_strides);
  const DType dtype = gradient.dtype;
  const std::int64_t bytes = dtype == DType::kFloat64 ? 8 : 4;  // of the arithmetic type
  const std::string type = std::string("<") + kernel_type(dtype) + ">";

  if (args.deterministic) {
    params.channel_blocks = static_cast<int>(blocks_for(params.channels, kPoolOrderedChannels));
    params.ordered_tiles = static_cast<int>(blocks_for(std::int64_t{params.height} * params.width,
                                                       pool_ordered_tile(static_cast<int>(bytes))));
    plan.launches.push_back(make_launch(
        "masked_point_pool_ordered_backward" + type,
        blocks_for(std::int64_t{params.images} * params.channel_blocks * params.ordered_tiles, 1),
        kPoolThreads, params));
    return plan;
  }

  WorkspaceArena workspace(memory);
  const bool in_place = is_arithmetic(dtype) && is_channels_last(gradient) &&
                        is_aligned(gradient, 0, 16 / static_cast<int>(bytes));
  params.sums = in_place ? gradient.data : workspace.take<unsigned char>(elements * bytes);
  params.vector_sums = params.channels % 4 == 0;
  plan.launches.push_back(fill_zero_launch(params.sums, elements * bytes));
  if (params.instances > 0 && params.sets > 0 && params.points_per_set > 0) {
    params.channel_blocks =
        static_cast<int>(blocks_for(params.channels, 32 * kPoolChannelsPerLane));
    const std::int64_t blocks = std::int64_t{params.images} * params.sets *
                                blocks_for(params.points_per_set, kPoolThreads) *
                                params.channel_blocks;
    plan.launches.push_back(make_launch("masked_point_pool_backward" + type, blocks_for(blocks, 1),
                                        kPoolThreads, params));
  }
  if (!in_place)
    plan.launches.push_back(
        write_gradient_launch(gradient, params.sums, {0, 2, 3, 1}));  // [B, H, W, C]
  plan.workspace_bytes = workspace.bytes();
  return plan;
}

}  // namespace

std::vector<Launch> masked_point_pool_forward_launches(const MaskedPointPoolArgs& args) {
  if (args.weight.elements() == 0) return {};
  MaskedPointPoolParams params = params_for(args, args.features);
  params.features = args.features.data;
  params.pooled = args.pooled.data;
  copy_strides(args.pooled, params.pooled_strides);
  const DType dtype = args.features.dtype;
  int vector = 16 / element_bytes(dtype);
  if (dtype == DType::kFloat64 || !is_packed(args.features, vector)) vector = 1;
  params.channel_blocks = std::max(1, static_cast<int>(blocks_for(params.channels, 32 * vector)));
  const std::int64_t blocks = std::int64_t{params.instances} * params.sets * params.channel_blocks;
  return {make_launch(std::string("masked_point_pool_forward<") + kernel_type(dtype) + ", " +
                          std::to_string(vector) + ">",
                      blocks_for(blocks, 1), kPoolThreads, params)};
}

std::vector<Launch> masked_point_pool_backward_launches(const MaskedPointPoolArgs& args) {
  return plan_backward(args, args.workspace.present ? args.workspace.data : nullptr).launches;
}

std::int64_t masked_point_pool_backward_workspace_bytes(const MaskedPointPoolArgs& args) {
  return plan_backward(args, nullptr).workspace_bytes;
}

}  // namespace alignmask
