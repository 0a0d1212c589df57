// What the kernels of ms_deform_attn are told. Filled on the host, read on the device.
//
// B images, S tokens, N heads, D channels per head, Q queries, L levels, P points.
#pragma once

#include "../common/fast_divide.h"

namespace alignmask {

struct MSDeformAttnParams {
  static constexpr int kMaxLevels = 64;  // they travel with the launch, which has room for 4 KB

  // Tensors as in MSDeformAttnArgs; null: absent. Strides in elements.
  const void* value;      // [B, S, N, D]
  const void* locations;  // [B, Q, N, L, P, 2]
  const void* weights;    // [B, Q, N, L, P]
  const void* reference;  // [B, Q, L, 2]
  void* out;              // [B, Q, N, D]
  long long value_strides[4], locations_strides[6], weights_strides[5], reference_strides[4], out_strides[4];
  // Do they hold the arithmetic type, not that of value?
  bool locations_wide, weights_wide, reference_wide;

  long long query_heads;  // B · N · Q
  int queries, heads, channels, levels, points;
  FastDivide by_queries, by_heads, by_points;

  int height[kMaxLevels], width[kMaxLevels], first_token[kMaxLevels];
};

}  // namespace alignmask
