// Multi-scale deformable attention in CUDA: the gradient of value.
#pragma once

#include "points.cuh"

namespace alignmask {

/// Neighbouring queries, which read many of the same values: a square of a level where queries are
/// tokens, else kTileQueries that follow one another, seen as a square, too.
struct QueryTile {
  int first, stride;  ///< the first query, and how far the rows of the square are apart
  int rows, columns;  ///< of the square that are in the level

  ALIGNMASK_DEVICE int query(UInt32 i) const {
    return first + static_cast<int>(i / kTileSide * stride + i % kTileSide);
  }
  /// Is there an i-th one, if there are `queries` in all?
  ALIGNMASK_DEVICE bool has(UInt32 i, int queries) const {
    return static_cast<int>(i / kTileSide) < rows && static_cast<int>(i % kTileSide) < columns &&
           query(i) < queries;
  }
};

ALIGNMASK_DEVICE QueryTile query_tile(const MSDeformAttnParams& params, int tile) {
  if (!params.queries_are_tokens) return {tile * kTileQueries, kTileSide, kTileSide, kTileSide};
  int level = 0;
  while (level + 1 < params.levels && tile >= params.first_tile[level + 1]) ++level;
  tile -= params.first_tile[level];
  const int down = params.by_tiles_across[level].quotient(tile), width = params.width[level];
  const int across = tile - down * ((width + kTileSide - 1) / kTileSide);
  return {params.first_token[level] + down * kTileSide * width + across * kTileSide, width,
          params.height[level] - down * kTileSide, width - across * kTileSide};
}

/// A corner of a point: it adds weight · gradient of the output to its token. `row`: where that
/// gradient begins among those of the tile.
template <class F>
struct alignas(2 * sizeof(F)) CornerEntry {
  F weight;
  int row;
};

/// A token that some corner reaches, and which of the sorted corners are its own: [begin, end),
/// never none.
struct alignas(8) ReachedToken {
  int token;
  unsigned short begin, end;
};

/// A block's: adds what the corners of `count` tokens bring to `sums`, which is at the first of up
/// to 32 channels. kVector channels of a token are a lane's; with more than one, `channels` and the
/// tokens' stride are multiples of it.
template <int kVector, class F>
ALIGNMASK_DEVICE void add_corners(const ReachedToken* reached, int count,
                                  const CornerEntry<F>* corners, const F* gradients, F* sums,
                                  int channels, int token_bytes) {
  struct alignas(kVector * sizeof(F)) Channels {
    F of[kVector];
  };
  constexpr int kLanes = kWarp / kVector;
  const int channel = static_cast<int>(threadIdx.x) % kLanes * kVector;
  if (channel >= channels) return;
  for (int i = static_cast<int>(threadIdx.x) / kLanes; i < count; i += kAttentionThreads / kLanes) {
    const ReachedToken token = reached[i];
    const CornerEntry<F>* corner = corners + token.begin;
    const CornerEntry<F>* const end = corners + token.end;
    F sum[kVector] = {};
#pragma unroll 1
    do {
      const Channels gradient =
          *reinterpret_cast<const Channels*>(gradients + channel + corner->row);
#pragma unroll
      for (int j = 0; j < kVector; ++j) sum[j] += corner->weight * gradient.of[j];
    } while (++corner < end);
    F* const to = advance(sums + channel, token.token, token_bytes);
    if constexpr (kVector == 1) {
      atomic_add(to, sum[0]);
    } else {
      atomic_add<kVector>(to, sum);
    }
  }
}

/// A block's: of `x` over all threads before the caller, the sum. `totals`: shared memory, one per
/// warp. Contains a barrier, behind which `total` is the sum over all threads.
ALIGNMASK_DEVICE UInt32 sum_before(UInt32 x, UInt32* totals, UInt32* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const UInt32 sum = running_sum(x);
  if (lane == kWarp - 1) totals[warp] = sum;
  __syncthreads();
  UInt32 before = 0, all = 0;
  for (int w = 0; w < kAttentionThreads / kWarp; ++w) {
    if (w < warp) before += totals[w];
    all += totals[w];
  }
  *total = all;
  return before + sum - x;
}

/// Slot of a token in a table of kSlots (a power of two), which is entered if it is not there yet;
/// -1: a free slot.
template <int kSlots>
ALIGNMASK_DEVICE int slot_of(int* table, int token) {
  // The upper bits of multiples of 2^32 / golden ratio: neighbours in a row, and in a column, fall
  // far apart.
  UInt32 slot = static_cast<UInt32>(token) * 2654435769u / (0xffffffffu / kSlots + 1);
  for (;; ++slot) {
    slot %= kSlots;
    const int found = atomicCAS(table + slot, -1, token);
    if (found == -1 || found == token) return static_cast<int>(slot);
  }
}

/// Of the kernel below, on a multiprocessor, by the bytes of an element: as many as have registers
/// without spilling.
template <int kBytes>
constexpr int kSortingBlocks = 4;
template <>
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kSortingBlocks<4> = 4;
#else
constexpr int kSortingBlocks<4> = 5;
#endif
template <>
constexpr int kSortingBlocks<8> = 3;

/// Adds to value_sums. A block owns a tile of queries of one head. Neighbouring queries reach the
/// same tokens, so the block sorts the corners of its points by token, and a token gets one
/// addition from all of them: additions to global memory, which happen in the second-level cache,
/// are what this gradient would wait for.
///
/// Level by level, 256 points at a time (float64: 128): a thread places one, its corners enter a
/// table of tokens in shared memory and are counted there; sums of the counts say where every
/// token's corners begin; they are put there; then the lanes add up tokens, one or four channels
/// each. Corners of a token are added in any order.
///
/// kPacked: the points of a query and head lie together, as in the other kernels.
template <class T, bool kPacked>
ALIGNMASK_KERNEL(kAttentionThreads, kSortingBlocks<sizeof(T)>)
ms_deform_attn_value_gradient(ALIGNMASK_PARAMS MSDeformAttnParams params) {
  using F = Arithmetic<T>;
  constexpr int kWarps = kAttentionThreads / kWarp, kPoints = sorted_points(sizeof(F)),
                kCorners = 4 * kPoints;
  constexpr int kSlots = kCorners, kOwnSlots = kSlots / kAttentionThreads;
  ALIGNMASK_SHARED(F, gradients, kTileQueries * kWarp);  // of the output, 32 channels
  ALIGNMASK_SHARED(CornerEntry<F>, corners, kCorners);
  ALIGNMASK_SHARED(ReachedToken, reached, kCorners);
  ALIGNMASK_SHARED(int, table, kSlots);   // of the tokens, by slot_of
  ALIGNMASK_SHARED(int, counts, kSlots);  // of their corners; then: where these begin
  // `corners` is written only after the totals have been read. An array of their own would take the
  // block beyond 32 KB, of which a multiprocessor of Volta holds three.
  UInt32* const totals = reinterpret_cast<UInt32*>(corners);
  static_assert(kWarps == kTileSide, "a warp reads a column of the tile's gradients");

  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int slice = static_cast<int>(blockIdx.x) / params.query_tiles;
  const QueryTile tile =
      query_tile(params, static_cast<int>(blockIdx.x) - slice * params.query_tiles);
  QueryHead at = {params.by_heads.quotient(slice), 0, 0, true};
  at.head = slice - at.image * params.heads;
  const T* const grad_out = static_cast<const T*>(params.grad_out) +
                            at.image * params.out_strides[0] + at.head * params.out_strides[2];
  F* const sums = static_cast<F*>(params.value_sums) + at.image * params.sums_strides[0] +
                  at.head * params.sums_strides[2];

  int loaded = -1;  // the first of the channels in `gradients`
  const int level_points = kTileQueries * params.points;
  for (int level = 0; level < params.levels; ++level) {
    for (int first = 0; first < level_points; first += kPoints) {
      __syncthreads();  // no thread reads the previous points any more
      for (int i = thread; i < kSlots; i += kAttentionThreads) {
        table[i] = -1;
        counts[i] = 0;
      }
      __syncthreads();

      const int index = first + thread, query = params.by_points.quotient(index);
      PlacedPoint<F> point = {{{-1, -1, -1, -1}}, 0, 0, 0, 0};
      if (thread < kPoints && index < level_points &&
          tile.has(static_cast<UInt32>(query), params.queries)) {
        at.query = tile.query(static_cast<UInt32>(query));
        HeadState<F> state = {};
        const HeadPoints<T, 1, kPacked> points(params, at, state);
        point = points.place(level * params.points + index - query * params.points);
      }
      int entered[4];  // the slot of each corner, and, in the lower half, how many came before it;
                       // -1: none
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        entered[k] = -1;
        if (point.tokens.corner[k] < 0) continue;
        const int slot = slot_of<kSlots>(table, point.tokens.corner[k]);
        entered[k] = slot << 16 | atomicAdd(counts + slot, 1);
      }
      __syncthreads();

      // Where the corners of every slot begin: sums of counts, and, in the upper half of the same
      // word, of used slots.
      UInt32 own = 0;
#pragma unroll
      for (int i = 0; i < kOwnSlots; ++i) {
        const int count = counts[thread + i * kAttentionThreads];
        if (count) own += (1u << 16) + static_cast<UInt32>(count);
      }
      UInt32 all;
      UInt32 before = sum_before(own, totals, &all);
#pragma unroll
      for (int i = 0; i < kOwnSlots; ++i) {
        const int slot = thread + i * kAttentionThreads, count = counts[slot];
        if (!count) continue;
        const UInt32 begin = before & 0xffffu, end = begin + static_cast<UInt32>(count);
        reached[before >> 16] = {table[slot], static_cast<unsigned short>(begin),
                                 static_cast<unsigned short>(end)};
        counts[slot] = static_cast<int>(begin);
        before += (1u << 16) + static_cast<UInt32>(count);
      }
      __syncthreads();

      const Corners<F> weight = attention_tap_weights(point.x, point.y, point.weight);
      const F weights[4] = {weight.top_left, weight.top_right, weight.bottom_left,
                            weight.bottom_right};
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (entered[k] >= 0)
          corners[counts[entered[k] >> 16] + (entered[k] & 0xffff)] = {weights[k], query * kWarp};

      for (int channel = 0; channel < params.channels; channel += kWarp) {
        const bool has_channel = channel + lane < params.channels;
        if (channel != loaded) {
          __syncthreads();  // no thread reads the previous channels any more
          const T* from = grad_out + tile.query(static_cast<UInt32>(warp)) * params.out_strides[1] +
                          (channel + lane) * params.out_strides[3];
#pragma unroll 4
          for (int row = 0; row < kTileSide; ++row, from += tile.stride * params.out_strides[1]) {
            const int i = row * kTileSide + warp;
            gradients[i * kWarp + lane] =
                tile.has(static_cast<UInt32>(i), params.queries) && has_channel
                    ? to_arithmetic(*from)
                    : F{0};
          }
          loaded = channel;
        }
        __syncthreads();
        const int count = static_cast<int>(all >> 16), channels = params.channels - channel;
        if (has_vector_atomics() && params.channels % 4 == 0) {
          add_corners<sizeof(F) == 4 ? 4 : 1>(reached, count, corners, gradients, sums + channel,
                                              channels, params.sums_token_bytes);
        } else {
          add_corners<1>(reached, count, corners, gradients, sums + channel, channels,
                         params.sums_token_bytes);
        }
      }
    }
  }
}

}  // namespace alignmask
