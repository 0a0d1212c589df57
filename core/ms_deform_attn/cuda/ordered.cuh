// Multi-scale deformable attention in CUDA: the gradient of value with a fixed order of additions.
#pragma once

#include "points.cuh"

namespace alignmask {

/// Writes the gradient of value, without atomics: a block owns some tokens of a level, image and
/// head, looks through all points of that level, and adds up those that reach its tokens, in their
/// order. A point is located once per block, not once per channel, and the first comparison rejects
/// most points; but every block looks at all of them, so the work grows with tokens times points:
/// the price of a fixed order without sorting, which would need more memory.
template <class T>
ALIGNMASK_KERNEL(kAttentionThreads, sizeof(T) == 8 ? 2 : 4)
ms_deform_attn_ordered_value_gradient(ALIGNMASK_PARAMS MSDeformAttnParams params) {
  using F = Arithmetic<T>;
  constexpr int kWarps = kAttentionThreads / kWarp;
  constexpr int kTile = ordered_tile(sizeof(F)),
                kOwn = kTile / kWarps;                  // tokens of a block, of a warp
  ALIGNMASK_SHARED(F, sums, kTile * kOrderedChannels);  // every lane uses its own
  ALIGNMASK_SHARED(int, queue, kAttentionThreads);      // points that reach the tile
  ALIGNMASK_SHARED(int, hits, kWarps);

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int channel_blocks = (params.channels + kOrderedChannels - 1) / kOrderedChannels;
  int tile = static_cast<int>(blockIdx.x % params.ordered_tiles), level = 0;
  const int slice = static_cast<int>(blockIdx.x / params.ordered_tiles) / channel_blocks;
  const int channel =
      static_cast<int>(blockIdx.x / params.ordered_tiles) % channel_blocks * kOrderedChannels +
      lane;
  for (;; ++level) {
    const int tiles = (params.height[level] * params.width[level] + kTile - 1) / kTile;
    if (tile < tiles) break;
    tile -= tiles;
  }
  const int tile_first = params.first_token[level] + tile * kTile;
  const int level_end = params.first_token[level] + params.height[level] * params.width[level];
  const int tile_end = smaller(tile_first + kTile, level_end);
  const int own_first = tile_first + warp * kOwn, own_end = smaller(own_first + kOwn, tile_end);
  F* const own = sums + warp * kOwn * kOrderedChannels + lane;
  for (int i = 0; i < kOwn; ++i) own[i * kOrderedChannels] = 0;

  QueryHead at = {params.by_heads.quotient(slice), 0, 0, true};
  at.head = slice - at.image * params.heads;
  const T* const grad_out = static_cast<const T*>(params.grad_out) +
                            at.image * params.out_strides[0] + at.head * params.out_strides[2];

  /// Point `index` of the level's, counted through queries.
  const auto place = [&](int index, bool with_weight) {
    at.query = params.by_points.quotient(index);
    HeadState<F> state = {};
    const HeadPoints<T, 1, false> points(params, at, state);
    const int point = level * params.points + (index - at.query * params.points);
    F x, y;
    points.pixel(point, level, x, y);
    return place_point(params, level, x, y, with_weight ? points.weight(point, level) : F{0});
  };
  const auto reaches = [](const CornerIndices& tokens, int first, int end) {
    bool some = false;
    for (int k = 0; k < 4; ++k)
      some = some || (tokens.corner[k] >= first && tokens.corner[k] < end);
    return some;
  };

  const int count = params.queries * params.points;
  for (int first = 0; first < count; first += kAttentionThreads) {
    const int index = first + static_cast<int>(threadIdx.x);
    const bool hit = index < count && reaches(place(index, false).tokens, tile_first, tile_end);
    if (!__syncthreads_count(hit)) continue;

    // Queue the hits in their order.
    const UInt32 ballot = __ballot_sync(kFullWarp, hit);
    if (lane == 0) hits[warp] = __popc(ballot);
    __syncthreads();
    int position = __popc(ballot & ((1u << lane) - 1)), queued = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) position += hits[w];
      queued += hits[w];
    }
    if (hit) queue[position] = static_cast<int>(threadIdx.x);
    __syncthreads();

    // Every warp takes from the queue what reaches its own tokens: a lane locates a point, then all
    // lanes add it.
    for (int from = 0; from < queued; from += kWarp) {
      PlacedPoint<F> point = {{{-1, -1, -1, -1}}, 0, 0, 0, 0};
      if (from + lane < queued) point = place(first + queue[from + lane], true);
      const int query = at.query;
      for (UInt32 left = __ballot_sync(kFullWarp, reaches(point.tokens, own_first, own_end)); left;
           left &= left - 1) {
        const int source = __ffs(static_cast<int>(left)) - 1;
        const Corners<F> tap = attention_tap_weights(__shfl_sync(kFullWarp, point.x, source),
                                                     __shfl_sync(kFullWarp, point.y, source),
                                                     __shfl_sync(kFullWarp, point.weight, source));
        const F taps[4] = {tap.top_left, tap.top_right, tap.bottom_left, tap.bottom_right};
        const Int64 row = __shfl_sync(kFullWarp, query, source) * params.out_strides[1];
        const F gradient = channel < params.channels
                               ? to_arithmetic(grad_out[row + channel * params.out_strides[3]])
                               : F{0};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int token = __shfl_sync(kFullWarp, point.tokens.corner[k], source);
          if (token >= own_first && token < own_end)
            own[(token - own_first) * kOrderedChannels] += taps[k] * gradient;
        }
      }
    }
  }

  if (channel >= params.channels) return;
  T* const to = static_cast<T*>(params.grad_value) + at.image * params.grad_value_strides[0] +
                at.head * params.grad_value_strides[2] + channel * params.grad_value_strides[3];
  for (int token = own_first; token < own_end; ++token)
    from_arithmetic(own[(token - own_first) * kOrderedChannels],
                    to[token * params.grad_value_strides[1]]);
}

}  // namespace alignmask
