#include "ms_deform_attn_launch.h"

#include <algorithm>
#include <limits>

#include "../common/check.h"
#include "ms_deform_attn_params.h"

namespace alignmask {

namespace {

constexpr int kThreads = 256;  // of a block

void copy_strides(const TensorView& tensor, long long* to) {
  std::copy(tensor.strides, tensor.strides + tensor.dims, to);
}

MSDeformAttnParams params_for(const MSDeformAttnArgs& args) {
  MSDeformAttnParams params = {};
  const TensorView &value = args.value, &locations = args.locations, &weights = args.weights,
                   &reference = args.reference;
  if (args.levels.size() > static_cast<std::size_t>(MSDeformAttnParams::kMaxLevels))
    throw ValueError("ms_deform_attn: at most " + std::to_string(MSDeformAttnParams::kMaxLevels) +
                     " levels on this device, got " + std::to_string(args.levels.size()));
  params.value = value.data;
  params.locations = locations.data;
  params.weights = weights.data;
  copy_strides(value, params.value_strides);
  copy_strides(locations, params.locations_strides);
  copy_strides(weights, params.weights_strides);
  if (reference.present) {
    params.reference = reference.data;
    copy_strides(reference, params.reference_strides);
    params.reference_wide = reference.dtype != value.dtype;
  }
  params.locations_wide = locations.dtype != value.dtype;
  params.weights_wide = weights.dtype != value.dtype;

  params.query_heads = value.shape[0] * value.shape[2] * locations.shape[1];
  params.queries = static_cast<int>(locations.shape[1]);
  params.heads = static_cast<int>(value.shape[2]);
  params.channels = static_cast<int>(value.shape[3]);
  params.levels = static_cast<int>(locations.shape[3]);
  params.points = static_cast<int>(locations.shape[4]);
  params.by_queries = FastDivide(static_cast<unsigned>(params.queries));
  params.by_heads = FastDivide(static_cast<unsigned>(params.heads));
  params.by_points = FastDivide(static_cast<unsigned>(std::max(params.points, 1)));
  int token = 0;
  for (int l = 0; l < params.levels; ++l) {
    params.height[l] = static_cast<int>(args.levels[static_cast<std::size_t>(l)].height);
    params.width[l] = static_cast<int>(args.levels[static_cast<std::size_t>(l)].width);
    params.first_token[l] = token;
    token += params.height[l] * params.width[l];
  }
  return params;
}

/// Strides of a [B, Q, N·D] tensor, seen as [B, Q, N, D].
void copy_head_strides(const TensorView& tensor, int channels, long long* to) {
  to[0] = tensor.strides[0];
  to[1] = tensor.strides[1];
  to[2] = tensor.strides[2] * channels;
  to[3] = tensor.strides[2];
}

bool is_multiple(const void* data, const long long* strides, const long long* sizes, int count, long long of,
                 int bytes) {
  for (int i = 0; i < count; ++i)
    if (sizes[i] > 1 && strides[i] % of) return false;
  return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(of * bytes) == 0;
}

/// Can lanes read 16 bytes of a token, and pairs of coordinates, at once?
bool is_packed(const MSDeformAttnArgs& args, const long long* out_strides, const void* out, long long vector) {
  const TensorView &value = args.value, &locations = args.locations, &weights = args.weights;
  const long long D = value.shape[3], L = locations.shape[3], P = locations.shape[4];
  const long long out_sizes[] = {value.shape[0], locations.shape[1], value.shape[2]};
  const long long value_strides[] = {value.strides[0], value.strides[1], value.strides[2]};
  const long long value_sizes[] = {value.shape[0], value.shape[1], value.shape[2]};
  const long long location_strides[] = {locations.strides[0], locations.strides[1], locations.strides[2]};
  const long long location_sizes[] = {locations.shape[0], locations.shape[1], locations.shape[2]};
  return D % vector == 0 && value.strides[3] == 1 && out_strides[3] == 1 &&
         value.strides[1] <= std::numeric_limits<int>::max() && value.strides[1] >= 0 &&
         is_multiple(value.data, value_strides, value_sizes, 3, vector, element_bytes(value.dtype)) &&
         is_multiple(out, out_strides, out_sizes, 3, vector, element_bytes(value.dtype)) && locations.strides[5] == 1 &&
         (P == 1 || locations.strides[4] == 2) && (L == 1 || locations.strides[3] == 2 * P) &&
         is_multiple(locations.data, location_strides, location_sizes, 3, 2, element_bytes(locations.dtype)) &&
         (P == 1 || weights.strides[4] == 1) && (L == 1 || weights.strides[3] == P);
}

}  // namespace

std::vector<Launch> ms_deform_attn_forward_launches(const MSDeformAttnArgs& args) {
  if (args.out.elements() == 0) return {};
  MSDeformAttnParams params = params_for(args);
  params.out = args.out.data;
  copy_head_strides(args.out, params.channels, params.out_strides);

  int vector = 16 / element_bytes(args.value.dtype), lanes = 0;
  if (args.value.dtype == DType::kFloat64 || !is_packed(args, params.out_strides, params.out, vector)) {
    vector = 1;
    lanes = 32;
  } else {
    lanes = params.channels <= 16 ? 16 / vector : params.channels <= 32 ? 32 / vector : 64 / vector;
  }
  return {make_launch("ms_deform_attn_forward<" + std::string(kernel_type(args.value.dtype)) + ", " +
                          std::to_string(vector) + ", " + std::to_string(lanes) + ">",
                      blocks_for(params.query_heads, kThreads / lanes), kThreads, params)};
}

}  // namespace alignmask
