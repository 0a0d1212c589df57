// Mask IoU in CUDA: targets are packed into bits once; predictions become bits in registers, 32
// pixels by one ballot, upsampled first if need be, and are counted against the targets at once.
// All counts are integers, so that the order of additions does not matter. Upsampling by
// kIouCellFactor goes by cells instead (cells.cuh).
#pragma once

#include "common/cuda/vector.cuh"
#include "common/cuda/warp.cuh"
#include "mask_iou/formula.h"
#include "params.h"
#include "tile.cuh"

namespace alignmask {

/// Packs rows of targets into bits and measures their areas. A warp takes a row at a time, a block
/// kIouPackedRows. kAligned: rows lie together and can be read 16 bytes at a time; each lane packs
/// its own, and two make a word. Otherwise: 32 pixels by one ballot.
template <bool kAligned>
ALIGNMASK_KERNEL(kIouThreads, 8)
mask_iou_pack(ALIGNMASK_PARAMS MaskIouParams params) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int row_blocks = (params.target_height + kIouPackedRows - 1) / kIouPackedRows;
  const int target = static_cast<int>(blockIdx.x) / row_blocks;
  const int first = static_cast<int>(blockIdx.x) % row_blocks * kIouPackedRows;
  const int end = smaller(first + kIouPackedRows, params.target_height);
  const auto* const mask =
      static_cast<const unsigned char*>(params.targets) + target * params.targets_strides[0];
  UInt32 area = 0;  // this lane's part
  for (int y = first + warp; y < end; y += kIouThreads / kWarp) {
    const unsigned char* const row = mask + y * params.targets_strides[1];
    UInt32* const to =
        params.bits + (static_cast<Int64>(target) * params.target_height + y) * params.row_words;
    if constexpr (kAligned) {
      for (int x = 0; x < params.target_width; x += kWarp * 16) {
        const int mine = x + lane * 16;
        UInt32 bits = 0;
        if (mine < params.target_width) {
          const Words<4> bytes = load_constant<4>(row + mine);
          for (int i = 0; i < 4; ++i) bits |= nonzero_bytes(bytes.word[i]) << (4 * i);
        }
        area += __popc(bits);
        bits |= __shfl_down_sync(kFullWarp, bits, 1) << 16;
        if (lane % 2 == 0 && mine < params.target_width) to[mine / 32] = bits;
      }
    } else {
      for (int word = 0; word < params.row_words; ++word) {
        const int x = word * 32 + lane;
        const UInt32 bits = __ballot_sync(
            kFullWarp, x < params.target_width && row[x * params.targets_strides[2]] != 0);
        if (lane == 0) {
          to[word] = bits;
          area += __popc(bits);
        }
      }
    }
  }
  area = reduce<kWarp>(area, [](UInt32 a, UInt32 b) { return a + b; });
  if (lane == 0 && area) atomicAdd(params.target_area + target, static_cast<UInt64>(area));
}

// What ptxas makes of upsampling for Blackwell does not fit into the registers of four blocks: it
// would spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kIouCountBlocks = 3;
#else
constexpr int kIouCountBlocks = 4;
#endif

/// Counts the pixels that kIouQueries predictions of an image share with up to 31 of its targets,
/// and those of the predictions themselves, over a band of rows. A warp takes 32 columns; a lane
/// holds the bits of one target, and ANDs them with every prediction's ballot. Lane 0 holds ones
/// and so counts areas.
///
/// Upsampling: the warp walks down the gaps between rows of the predictions. Along the rows a lane
/// blends once per row; across a gap, once per pixel.
///
/// Eight queries share a target's bits and have eight (sixteen) loads in flight. Half of the
/// threads that a multiprocessor can hold (64 registers each) are then far more than are needed to
/// keep the memory busy.
template <class T, bool kUpsamples>
ALIGNMASK_KERNEL(kIouThreads, sizeof(T) == 8 ? 2 : kIouCountBlocks)
mask_iou_count(ALIGNMASK_PARAMS MaskIouParams params) {
  using F = Arithmetic<T>;
  constexpr int kWarps = kIouThreads / kWarp;
  ALIGNMASK_SHARED(int, found, kWarp);
  ALIGNMASK_SHARED(UInt32, sums, kIouQueries * kWarp);
  static_assert(kIouQueries * kWarp == kIouThreads, "one thread per sum");

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int block = static_cast<int>(blockIdx.x);
  const IouTile mine = iou_tile<kIouQueries>(params, block);
  if (warp == 0) find_targets(params, mine.image, mine.chunk, lane, found);
  sums[threadIdx.x] = 0;
  __syncthreads();
  if (found[1] == params.target_count) return;

  const int target = found[lane] < params.target_count ? found[lane] : -1;
  const auto bits_of_target = [&](int y, int word) {
    if (lane == 0) return ~0u;
    const Int64 row = static_cast<Int64>(recomputed(target)) * params.target_height + y;
    return target >= 0 ? params.bits[row * params.row_words + word] : 0u;
  };
  const T* const predictions =
      static_cast<const T*>(params.predictions) + mine.image * params.predictions_strides[0];
  const F threshold = static_cast<F>(params.threshold);
  UInt32 count[kIouQueries] = {};

  /// Element of prediction i of this block's; behind the last, of the last.
  const auto read = [&](int i, Int64 at) {
    const int query = smaller(recomputed(mine.first_query) + i, params.queries - 1);
    return to_arithmetic(predictions[query * params.predictions_strides[1] + at]);
  };
  const auto add = [&](int i, bool is_set, UInt32 bits) {
    count[i] += __popc(__ballot_sync(kFullWarp, is_set) & bits);
  };

  for (int word = warp; word < params.row_words; word += kWarps) {
    const int x = word * 32 + lane;
    const bool exists = x < params.target_width;
    if constexpr (!kUpsamples) {
      const int end = smaller((mine.band + 1) * params.band_rows, params.height);
      for (int y = mine.band * params.band_rows; y < end; ++y) {
        const Int64 at = y * params.predictions_strides[2] + x * params.predictions_strides[3];
        F value[kIouQueries];
#pragma unroll
        for (int i = 0; i < kIouQueries; ++i) value[i] = exists ? read(i, at) : threshold;
        const UInt32 bits = bits_of_target(y, word);
#pragma unroll
        for (int i = 0; i < kIouQueries; ++i) add(i, value[i] > threshold, bits);
      }
    } else {
      const auto phase = UpsamplingPhase<F>::of(x % params.factor, params.factor);
      const int column = x / params.factor + phase.first, last = params.width - 1;
      const int left = smaller(larger(column, 0), last), right = smaller(column + 1, last);
      const auto blend_row = [&](int i, int y) {
        const Int64 row =
            smaller(larger(recomputed(y), 0), params.height - 1) * params.predictions_strides[2];
        return blend(read(i, row + left * params.predictions_strides[3]),
                     read(i, row + right * params.predictions_strides[3]), phase.part);
      };
      // Gap i, between rows i and i + 1, has `factor` rows of pixels, the first of them half a row
      // below row i.
      const int first_gap = mine.band * params.band_rows - 1;
      F above[kIouQueries];
#pragma unroll
      for (int i = 0; i < kIouQueries; ++i) above[i] = blend_row(i, first_gap);
      for (int gap = first_gap;
           gap < smaller((recomputed(mine.band) + 1) * params.band_rows - 1, params.height);
           ++gap) {
        F below[kIouQueries];
#pragma unroll
        for (int i = 0; i < kIouQueries; ++i) below[i] = blend_row(i, gap + 1);
        const int first = gap * params.factor + params.factor / 2,
                  end = smaller(first + params.factor, params.target_height);
        for (int y = larger(first, 0); y < end; ++y) {
          const F part = UpsamplingPhase<F>::of(y - gap * params.factor, params.factor).part;
          const UInt32 bits = bits_of_target(y, word);
#pragma unroll
          for (int i = 0; i < kIouQueries; ++i)
            add(i, exists && blend(above[i], below[i], part) > threshold, bits);
        }
#pragma unroll
        for (int i = 0; i < kIouQueries; ++i) above[i] = below[i];
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kIouQueries; ++i) atomicAdd(sums + i * kWarp + lane, count[i]);
  __syncthreads();
  add_sums<kIouQueries, kWarp>(params, iou_tile<kIouQueries>(params, recomputed(block)),
                               found[lane], sums);
}

/// Writes iou, one thread per element. F: its type.
template <class F>
ALIGNMASK_KERNEL(kIouThreads, 8)
mask_iou_divide(ALIGNMASK_PARAMS MaskIouParams params) {
  const Int64 index = static_cast<Int64>(blockIdx.x) * kIouThreads + threadIdx.x;
  const int target = static_cast<int>(index / params.queries),
            query = static_cast<int>(index % params.queries);
  if (target >= params.target_count) return;
  const Int64 image = load_int(params.owner, target * params.owner_stride, params.owner_wide);
  double iou = 0;
  if (image >= 0 && image < params.images)
    iou = iou_of(static_cast<Int64>(params.prediction_area[image * params.queries + query]),
                 static_cast<Int64>(params.target_area[target]),
                 static_cast<Int64>(params.both[index]));
  static_cast<F*>(params.iou)[target * params.iou_strides[0] + query * params.iou_strides[1]] =
      static_cast<F>(iou);
}

}  // namespace alignmask
