// What a block of mask_iou counts, and where it adds the sums.
#pragma once

#include "common/cuda/ptx.cuh"
#include "common/cuda/vector.cuh"
#include "mask_iou/formula.h"
#include "params.h"

namespace alignmask {

using namespace ALIGNMASK_ISA;

/// Bit i of the result: is byte i of the word not zero?
ALIGNMASK_DEVICE UInt32 nonzero_bytes(UInt32 bytes) {
  const UInt32 high = (((bytes & 0x7f7f7f7fu) + 0x7f7f7f7fu) | bytes) &
                      0x80808080u;           // the highest bit of each byte
  return ((high >> 7) * 0x10204080u) >> 28;  // moves bits 0, 8, 16, 24 to 28, 29, 30, 31
}

/// What the lanes of a warp count: the first the image's pixels (as one more target, behind the
/// last), the others those of the image's targets number chunk · kIouTargets and following; where
/// there are no more, of the image's, and the caller ignores them.
ALIGNMASK_DEVICE void find_targets(const MaskIouParams& params, int image, int chunk, int lane,
                                   int* found) {
  found[lane] = params.target_count;
  __syncwarp();
  int before = -chunk * kIouTargets;  // of the image, counted from the chunk's first
  for (int first = 0; first < params.target_count && before < kIouTargets; first += kWarp) {
    const int target = first + lane;
    const bool mine =
        target < params.target_count &&
        load_int(params.owner, target * params.owner_stride, params.owner_wide) == image;
    const UInt32 ballot = __ballot_sync(kFullWarp, mine);
    const int rank = before + __popc(ballot & ((1u << lane) - 1));
    if (mine && rank >= 0 && rank < kIouTargets) found[rank + 1] = target;
    before += __popc(ballot);
  }
}

/// A block's share of the counting.
struct IouTile {
  int band, first_query, image, chunk;
};

template <int kQueries>
ALIGNMASK_DEVICE IouTile iou_tile(const MaskIouParams& params, int block) {
  const int tiles = (params.queries + kQueries - 1) / kQueries;
  const int of_bands = block / params.bands, of_queries = of_bands / tiles,
            chunk = of_queries / params.images;
  return {block - of_bands * params.bands, (of_bands - of_queries * tiles) * kQueries,
          of_queries - chunk * params.images, chunk};
}

/// Adds a block's sums, [kQueries, kStride], to those in memory. `target`: that the lane counts.
template <int kQueries, int kStride>
ALIGNMASK_DEVICE void add_sums(const MaskIouParams& params, IouTile tile, int target,
                               const UInt32* sums) {
  const int lane = threadIdx.x % kWarp;
  for (int i = threadIdx.x / kWarp; i < kQueries; i += kIouThreads / kWarp) {
    const int query = tile.first_query + i;
    const UInt64 sum = sums[i * kStride + lane];
    if (query >= params.queries || sum == 0) continue;
    if (lane > 0) {
      if (target < params.target_count)
        atomicAdd(params.both + static_cast<Int64>(target) * params.queries + query, sum);
    } else if (tile.chunk == 0) {
      atomicAdd(params.prediction_area + static_cast<Int64>(tile.image) * params.queries + query,
                sum);
    }
  }
}

}  // namespace alignmask
