#include "launches.h"

#include <algorithm>
#include <limits>

#include "common/arena.h"
#include "common/check.h"
#include "common/launch/gradient_launch.h"
#include "params.h"

namespace alignmask {

namespace {

/// Strides of a [B, Q, N·D] tensor, seen as [B, Q, N, D].
void copy_head_strides(const TensorView& tensor, int channels, long long* to) {
  to[0] = tensor.strides[0];
  to[1] = tensor.strides[1];
  to[2] = tensor.strides[2] * channels;
  to[3] = tensor.strides[2];
}

/// Between tokens of value; 0 if they do not fit.
int token_bytes(const TensorView& value) {
  const std::int64_t bytes = value.strides[1] * element_bytes(value.dtype);
  return bytes > 0 && bytes <= std::numeric_limits<int>::max() ? static_cast<int>(bytes) : 0;
}

/// Cuts the queries into tiles: squares of the levels if there are as many queries as tokens, as in
/// self-attention.
void tile_queries(MSDeformAttnParams& params, std::int64_t tokens) {
  params.queries_are_tokens = params.queries == tokens;
  if (!params.queries_are_tokens) {
    params.query_tiles = static_cast<int>(blocks_for(params.queries, kTileQueries));
    return;
  }
  const auto sides = [](int size) { return size / kTileSide + (size % kTileSide != 0); };
  for (int l = 0; l < params.levels; ++l) {
    params.first_tile[l] = params.query_tiles;
    params.by_tiles_across[l] =
        FastDivide(static_cast<unsigned>(std::max(sides(params.width[l]), 1)));
    params.query_tiles += sides(params.height[l]) * sides(params.width[l]);
  }
}

/// Everything but outputs.
MSDeformAttnParams params_for(const MSDeformAttnArgs& args) {
  MSDeformAttnParams params = {};
  const TensorView &value = args.value, &locations = args.locations, &weights = args.weights,
                   &reference = args.reference;
  const std::int64_t B = value.shape[0], S = value.shape[1], N = value.shape[2],
                     Q = locations.shape[1], L = locations.shape[3], P = locations.shape[4];
  if (L > MSDeformAttnParams::kMaxLevels)
    throw ValueError(std::string(args.op()) + ": L = " + std::to_string(L) + " levels, at most " +
                     std::to_string(MSDeformAttnParams::kMaxLevels) +
                     " are supported on this device");
  checked_int(S + kAttentionThreads, args.op(), "S");
  checked_int(B * N, args.op(), "B·N");
  checked_int(L * P, args.op(), "L·P");
  checked_int(kTileQueries * P + kAttentionThreads, args.op(), "P");  // of a tile of queries
  params.value = value.data;
  params.locations = locations.data;
  params.weights = weights.data;
  params.reference = args.form == MSDeformAttnArgs::Form::kOffsets ? reference.data : nullptr;
  copy_strides(value, params.value_strides);
  params.value_token_bytes = token_bytes(value);
  copy_strides(locations, params.locations_strides);
  copy_strides(weights, params.weights_strides);
  copy_strides(reference, params.reference_strides);
  params.locations_wide = is_arithmetic(locations.dtype);
  params.weights_wide = is_arithmetic(weights.dtype);
  params.reference_wide = is_arithmetic(reference.dtype);

  params.query_heads = B * N * Q;
  params.images = checked_int(B, args.op(), "B");
  params.queries = checked_int(Q, args.op(), "Q");
  params.heads = checked_int(N, args.op(), "N");
  params.channels = checked_int(value.shape[3], args.op(), "D");
  params.levels = static_cast<int>(L);
  params.points = static_cast<int>(P);
  params.by_queries = FastDivide(static_cast<unsigned>(std::max(params.queries, 1)));
  params.by_heads = FastDivide(static_cast<unsigned>(std::max(params.heads, 1)));
  params.by_points = FastDivide(static_cast<unsigned>(std::max(params.points, 1)));
  const int tile = ordered_tile(value.dtype == DType::kFloat64 ? 8 : 4);
  int token = 0;
  for (int l = 0; l < params.levels; ++l) {
    params.height[l] = static_cast<int>(args.levels[static_cast<std::size_t>(l)].height);
    params.width[l] = static_cast<int>(args.levels[static_cast<std::size_t>(l)].width);
    params.first_token[l] = token;
    const int tokens = params.height[l] * params.width[l];
    params.ordered_tiles += tokens / tile + (tokens % tile != 0);
    token += tokens;
  }
  tile_queries(params, S);
  return params;
}

/// Can lanes read `vector` channels of value and `out` (or its gradient), and pairs of coordinates,
/// at once?
bool is_packed(const MSDeformAttnArgs& args, const TensorView& out, int vector) {
  const TensorView &value = args.value, &locations = args.locations, &weights = args.weights;
  const std::int64_t D = value.shape[3], L = locations.shape[3], P = locations.shape[4];
  return (D == 16 || D == 32 || D == 64) && value.strides[3] == 1 && out.strides[2] == 1 &&
         token_bytes(value) != 0 && is_aligned(value, 3, vector) && is_aligned(out, 2, vector) &&
         locations.strides[5] == 1 && (P == 1 || locations.strides[4] == 2) &&
         (L == 1 || locations.strides[3] == 2 * P) && is_aligned(locations, 3, 2) &&
         (P == 1 || weights.strides[4] == 1) && (L == 1 || weights.strides[3] == P);
}

/// One group of lanes per (image, head, query).
Launch launch_groups(const char* kernel, DType dtype, int vector, int lanes,
                     const MSDeformAttnParams& params) {
  const std::string name = std::string(kernel) + "<" + kernel_type(dtype) + ", " +
                           std::to_string(vector) + ", " + std::to_string(lanes) + ">";
  return make_launch(name, blocks_for(params.query_heads, kAttentionThreads / lanes),
                     kAttentionThreads, params);
}

struct Backward {
  std::vector<Launch> launches;
  std::int64_t workspace_bytes;
};

Backward plan_backward(const MSDeformAttnArgs& args, void* memory) {
  MSDeformAttnParams params = params_for(args);
  std::vector<Launch> launches, last;
  WorkspaceArena workspace(memory);
  const DType dtype = args.value.dtype;
  const std::int64_t bytes = dtype == DType::kFloat64 ? 8 : 4;  // of the arithmetic type
  const std::string type = std::string("<") + kernel_type(dtype) + ">";
  // channels of a lane
  const int vector = dtype == DType::kFloat32 || params.channels != 32 ? 4 : 8;
  const bool packed = dtype != DType::kFloat64 && is_packed(args, args.grad_out, vector);

  params.grad_out = args.grad_out.data;
  copy_head_strides(args.grad_out, params.channels, params.out_strides);
  if (args.grad_locations.present) params.grad_locations = args.grad_locations.data;
  copy_strides(args.grad_locations, params.grad_locations_strides);

  if (args.grad_weights.present) {
    params.grad_weights = args.grad_weights.data;
    copy_strides(args.grad_weights, params.grad_weights_strides);
    if (args.form == MSDeformAttnArgs::Form::kOffsets) {
      const bool in_place = is_arithmetic(args.grad_weights.dtype);
      params.kept_gradients = in_place
                                  ? params.grad_weights
                                  : workspace.take<unsigned char>(args.weights.elements() * bytes);
      in_place ? copy_strides(args.grad_weights, params.kept_strides)
               : contiguous_strides(args.weights, params.kept_strides);
    }
  }

  if (args.grad_reference.present && args.grad_reference.elements() > 0) {
    MSDeformAttnParams summing = params;
    if (args.grad_locations.present && is_arithmetic(args.grad_locations.dtype)) {
      summing.pixel_gradient = args.grad_locations.data;
      copy_strides(args.grad_locations, summing.pixel_gradient_strides);
    } else {
      summing.pixel_gradient = params.pixel_gradient =
          workspace.take<unsigned char>(args.locations.elements() * bytes);
      contiguous_strides(args.locations, summing.pixel_gradient_strides);
      contiguous_strides(args.locations, params.pixel_gradient_strides);
    }
    summing.grad_reference = args.grad_reference.data;
    copy_strides(args.grad_reference, summing.grad_reference_strides);
    last.push_back(make_launch("ms_deform_attn_reference_gradient" + type,
                               blocks_for(args.grad_reference.elements(), kAttentionThreads),
                               kAttentionThreads, summing));
  }

  const std::int64_t value_elements = args.value.elements();
  const bool has_points = args.weights.elements() > 0;
  if (args.grad_value.present && value_elements > 0) {
    params.grad_value = args.grad_value.data;
    copy_strides(args.grad_value, params.grad_value_strides);
    if (args.form == MSDeformAttnArgs::Form::kOffsets)
      params.softmax = workspace.take<unsigned char>(2 * params.query_heads * bytes);
    const std::int64_t slices = std::int64_t{params.images} * params.heads;
    if (args.deterministic) {
      checked_int(static_cast<std::int64_t>(params.queries) * params.points + kAttentionThreads,
                  args.op(), "Q·P");
      const std::int64_t channel_blocks =
          (params.channels + kOrderedChannels - 1) / kOrderedChannels;
      last.push_back(make_launch("ms_deform_attn_ordered_value_gradient" + type,
                                 blocks_for(params.ordered_tiles * channel_blocks * slices, 1),
                                 kAttentionThreads, params));
    } else {
      const bool in_place = is_arithmetic(dtype) && is_contiguous(args.grad_value) &&
                            is_aligned(args.grad_value, 0, 16 / (int)bytes);
      params.value_sums =
          in_place ? args.grad_value.data : workspace.take<unsigned char>(value_elements * bytes);
      contiguous_strides(args.value, params.sums_strides);
      params.sums_token_bytes =
          checked_int(params.sums_strides[1] * bytes, args.op(), "N·D in bytes");
      launches.push_back(fill_zero_launch(params.value_sums, value_elements * bytes));
      if (has_points)
        last.push_back(make_launch(std::string("ms_deform_attn_value_gradient<") +
                                       kernel_type(dtype) + (packed ? ", true>" : ", false>"),
                                   blocks_for(slices * params.query_tiles, 1), kAttentionThreads,
                                   params));
      if (!in_place)
        last.push_back(write_gradient_launch(args.grad_value, params.value_sums, {0, 1, 2, 3}));
    }
  }

  const bool for_points =
      params.grad_locations || params.grad_weights || params.pixel_gradient || params.softmax;
  if (has_points && for_points) {
    launches.push_back(launch_groups("ms_deform_attn_backward", dtype, packed ? vector : 1,
                                     packed ? params.channels / vector : 32, params));
  }
  launches.insert(launches.end(), last.begin(), last.end());
  return {launches, workspace.bytes()};
}

}  // namespace

std::vector<Launch> ms_deform_attn_forward_launches(const MSDeformAttnArgs& args) {
  if (args.out.elements() == 0) return {};
  MSDeformAttnParams params = params_for(args);
  params.out = args.out.data;
  copy_head_strides(args.out, params.channels, params.out_strides);
  const int vector = 16 / element_bytes(args.value.dtype);
  const bool packed = args.value.dtype != DType::kFloat64 && is_packed(args, args.out, vector);
  return {launch_groups("ms_deform_attn_forward", args.value.dtype, packed ? vector : 1,
                        packed ? params.channels / vector : 32, params)};
}

std::vector<Launch> ms_deform_attn_backward_launches(const MSDeformAttnArgs& args) {
  return plan_backward(args, args.workspace.present ? args.workspace.data : nullptr).launches;
}

std::int64_t ms_deform_attn_backward_workspace_bytes(const MSDeformAttnArgs& args) {
  return plan_backward(args, nullptr).workspace_bytes;
}

}  // namespace alignmask
