// Parameters of the CUDA kernels of ms_deform_attn. Filled on the host, read on the device.
//
// B images, S tokens, N heads, D channels per head, Q queries, L levels, P points.
#pragma once

#include "common/cuda/fast_divide.h"

namespace alignmask {

constexpr int kAttentionThreads = 256;  // of a block
constexpr int kOrderedChannels = 32;    // of a block that adds up gradients in order: one per lane
constexpr int kTileSide = 8;            // of a tile of neighbouring queries
constexpr int kTileQueries = kTileSide * kTileSide;

/// Points that a block of ms_deform_attn_value_gradient sorts at a time: their corners take 8 KB of
/// shared memory.
ALIGNMASK_HOST_DEVICE constexpr int sorted_points(int arithmetic_bytes) {
  return 1024 / arithmetic_bytes;
}

/// Tokens of one level that such a block owns: their sums take 16 KB of shared memory.
ALIGNMASK_HOST_DEVICE constexpr int ordered_tile(int arithmetic_bytes) {
  return (16 << 10) / (kOrderedChannels * arithmetic_bytes);
}

struct MSDeformAttnParams {
  static constexpr int kMaxLevels = 64;  // they travel with the launch, which has room for 4 KB

  // Tensors as in MSDeformAttnArgs; null: absent. Strides in elements.
  const void* value;      // [B, S, N, D]
  const void* locations;  // [B, Q, N, L, P, 2]
  const void* weights;    // [B, Q, N, L, P]
  const void* reference;  // [B, Q, L, 2]
  long long value_strides[4], locations_strides[6], weights_strides[5], reference_strides[4];
  int value_token_bytes;  // the stride of a token, where it fits (0 elsewhere)
  // Do they, and their gradients, hold the arithmetic type, not that of value?
  bool locations_wide, weights_wide, reference_wide;

  void* out;                 // [B, Q, N, D]
  const void* grad_out;      // [B, Q, N, D]
  long long out_strides[4];  // of both

  void* grad_value;
  void* grad_locations;
  void* grad_weights;
  void* grad_reference;
  long long grad_value_strides[4], grad_locations_strides[6], grad_weights_strides[5],
      grad_reference_strides[4];

  // In the arithmetic type:
  void* value_sums;      // [B, S, N, D]: where blocks add up the gradient of value
  void* pixel_gradient;  // [B, Q, N, L, P, 2]: gradient of locations in pixels, from which that of
                         // reference is computed
  void* kept_gradients;  // [B, Q, N, L, P]: gradient of weights, from which that of logits is
                         // computed
  void* softmax;         // [B, N, Q, 2]: largest logit, and 1 / sum of exponentials relative to it
  int sums_token_bytes;
  long long sums_strides[4], pixel_gradient_strides[6], kept_strides[5];

  long long query_heads;  // B · N · Q
  int images, queries, heads, channels, levels, points;
  int ordered_tiles;  // of all levels, see ordered.cuh
  FastDivide by_queries, by_heads, by_points;

  // See QueryTile in value_gradient.cuh.
  bool queries_are_tokens;  // in their order, so that tiles are squares of a level
  int query_tiles;

  int height[kMaxLevels], width[kMaxLevels], first_token[kMaxLevels];
  int first_tile[kMaxLevels];
  FastDivide by_tiles_across[kMaxLevels];
};

}  // namespace alignmask
