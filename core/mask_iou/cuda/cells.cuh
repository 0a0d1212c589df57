// Mask IoU of predictions that are upsampled by kIouCellFactor = 4, by cells.
//
// A cell is what lies between four neighbouring logits of a prediction: 4 x 4 pixels, blended of
// these four. Where all of them are above the threshold, so is every pixel between, and where none
// is, none is. Then it is enough to know how many of the cell's pixels each target has; only mixed
// cells are counted pixel by pixel. Cells at the border reach beyond the image: their logits
// outside are the outermost ones, their pixels outside are not counted.
//
// Predictions have (h + 1) x (w + 1) cells. The 32 columns of a warp have 31 cells between them,
// which make a word: lane i reads column word · 31 + i - 1, and bit i is the cell to its left; bit
// 0 stays empty. A word of a target has
// - planes: digit p of a cell's number of pixels, in binary, is the cell's bit of plane p;
// - pixels: for bit i of the word, 16 bits: pixel (y, x) of the cell is bit 4 y + x.
// Behind the last target comes the whole image as another one, with every pixel set: it counts
// areas.
#pragma once

#include "common/cuda/vector.cuh"
#include "common/cuda/warp.cuh"
#include "mask_iou/formula.h"
#include "params.h"
#include "tile.cuh"

namespace alignmask {

/// Words of cells of a target.
ALIGNMASK_DEVICE int cell_words(const MaskIouParams& params) {
  return (params.height + 1) * params.row_words;
}

/// Packs targets and measures their areas. A warp takes a row of cells. kAligned: rows can be read
/// 4 bytes at a time.
template <bool kAligned>
ALIGNMASK_KERNEL(kIouThreads, 6)
mask_iou_pack_cells(ALIGNMASK_PARAMS MaskIouParams params) {
  const int lane = threadIdx.x % kWarp;
  const Int64 line = static_cast<Int64>(blockIdx.x) * kIouWarps + threadIdx.x / kWarp;
  const int target = static_cast<int>(line / (params.height + 1)),
            row = static_cast<int>(line % (params.height + 1));
  if (target > params.target_count) return;
  const bool is_image = target == params.target_count;
  const auto* const mask =
      static_cast<const unsigned char*>(params.targets) + target * params.targets_strides[0];
  const int top = row * kIouCellFactor - kIouCellFactor / 2;
  UInt32 area = 0;  // this lane's part
  for (int word = 0; word < params.row_words; ++word) {
    // The 4 x 4 pixels around column `column` of the predictions, in the order of words. Its left
    // half belongs to the cell on the left, its right half to the one on the right.
    const int column = word * kIouCellsOfWord + lane - 1;
    UInt32 own = 0;
    if (column >= 0 && column < params.width) {
      for (int i = 0; i < kIouCellFactor; ++i) {
        const int y = top + i;
        if (y < 0 || y >= params.target_height) continue;
        const unsigned char* const from = mask + y * params.targets_strides[1];
        UInt32 set = 0;
        if (is_image) {
          set = 0xf;
        } else if constexpr (kAligned) {
          set = nonzero_bytes(load_constant<1>(from + column * kIouCellFactor).word[0]);
        } else {
          for (int x = 0; x < kIouCellFactor; ++x)
            set |= (from[(column * kIouCellFactor + x) * params.targets_strides[2]] != 0) << x;
        }
        own |= set << (kIouCellFactor * i);
      }
    }
    const UInt32 left = __shfl_up_sync(kFullWarp, own, 1);
    const UInt32 cell = lane == 0 ? 0 : (left >> 2 & 0x3333) | (own & 0x3333) << 2;
    const UInt32 count = __popc(cell);
    area += count;
    UInt32 plane = 0;  // number `lane`
    if (__any_sync(kFullWarp, cell != 0)) {
      for (int i = 0; i < kIouCellPlanes; ++i) {
        const UInt32 ballot = __ballot_sync(kFullWarp, count >> i & 1);
        if (lane == i) plane = ballot;
      }
    }
    const Int64 at =
        static_cast<Int64>(target) * cell_words(params) + row * params.row_words + word;
    if (lane < kIouPlaneWords) params.planes[at * kIouPlaneWords + lane] = plane;
    params.pixels[at * kWarp + lane] = static_cast<unsigned short>(cell);
  }
  area = reduce<kWarp>(area, [](UInt32 a, UInt32 b) { return a + b; });
  if (lane == 0 && area && !is_image)
    atomicAdd(params.target_area + target, static_cast<UInt64>(area));
}

/// What a warp of mask_iou_count_cells works with: a strip of a tile.
template <class T>
struct CellCounter {
  using F = Arithmetic<T>;

  const MaskIouParams& params;
  const T* predictions;  // the block's first
  F threshold;
  UInt32 queries;               // bit i: is the block to count its prediction i?
  int word;                     // of rows of cells
  int target;                   // that the lane counts
  int target_count;             // how many lanes have one
  const int* targets;           // [kWarp]: that the lanes count
  UInt32* sums;                 // [kIouCellQueries, kIouCellSums]
  UInt32* ballots;              // of the warp, [kWarp]
  unsigned short* mixed_cells;  // of the warp, [kIouMixedCells]: row of the strip · 2^9 +
                                // prediction · 2^5 + bit

  ALIGNMASK_DEVICE static int lane() { return threadIdx.x % kWarp; }

  /// The row or column itself, or the outermost one.
  ALIGNMASK_DEVICE int row_within(int row) const {
    return smaller(larger(row, 0), params.height - 1);
  }
  ALIGNMASK_DEVICE int column_within(int column) const {
    return smaller(larger(column, 0), params.width - 1);
  }

  /// Lane i: between which neighbours of row `row` prediction i is above the threshold for sure;
  /// lane kIouCellQueries + i: between which it is not.
  ALIGNMASK_DEVICE UInt32 classify(int row) const {
    const auto bounds = ThresholdBounds<F>::of(threshold);
    F values[kIouCellQueries];
    const T* from =
        predictions + row_within(row) * params.predictions_strides[2] +
        column_within(word * kIouCellsOfWord + lane() - 1) * params.predictions_strides[3];
#pragma unroll
    for (int i = 0; i < kIouCellQueries; ++i, from += params.predictions_strides[1])
      values[i] = to_arithmetic(*from);
#pragma unroll
    for (int i = 0; i < kIouCellQueries; i += 4) {
      Words<4> set, unset;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        set.word[j] = __ballot_sync(kFullWarp, values[i + j] > bounds.above);
        unset.word[j] = __ballot_sync(kFullWarp, !(values[i + j] > bounds.below));
      }
      if (lane() == 0) {
        *reinterpret_cast<Words<4>*>(ballots + i) = set;
        *reinterpret_cast<Words<4>*>(ballots + kIouCellQueries + i) = unset;
      }
    }
    __syncwarp();
    const UInt32 mine = ballots[lane()];
    __syncwarp();
    return mine & mine << 1;
  }

  /// Counts the pixels of cells that are set; lane i knows those of prediction i. Every lane counts
  /// for its target.
  ALIGNMASK_DEVICE void count_set(UInt32 cells, int row) const {
    UInt32 some = __ballot_sync(kFullWarp, cells != 0) & queries;
    if (!some) return;
    const Int64 at =
        static_cast<Int64>(target) * cell_words(params) + row * params.row_words + word;
    const UInt32* const from = params.planes + at * kIouPlaneWords;
    const Words<4> planes = load_constant<4>(from);
    const UInt32 last_plane = load_constant<1>(from + 4).word[0];
    for (; some; some &= some - 1) {
      const int query = __ffs(static_cast<int>(some)) - 1;
      const UInt32 set = __shfl_sync(kFullWarp, cells, query);
      UInt32 count = __popc(set & last_plane) << 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) count += __popc(set & planes.word[i]) << i;
      atomicAdd(sums + query * kIouCellSums + lane(), count);
    }
  }

  /// Notes mixed cells, of which lanes i and kIouCellQueries + i know those of prediction i, behind
  /// `count` others; returns how many there are then.
  ALIGNMASK_DEVICE int note_mixed(UInt32 cells, int row_of_strip, int count) const {
    const int query = lane() % kIouCellQueries;
    UInt32 mine = cells & (lane() < kIouCellQueries ? 0xffffu : 0xffff0000u);
    if (!(queries >> query & 1)) mine = 0;
    const int end = running_sum(static_cast<int>(__popc(mine)));
    const int all = count + __shfl_sync(kFullWarp, end, kWarp - 1);
    for (int at = count + end - __popc(mine); mine; mine &= mine - 1)
      mixed_cells[at++] = static_cast<unsigned short>(row_of_strip << 9 | query << 5 |
                                                      (__ffs(static_cast<int>(mine)) - 1));
    __syncwarp();
    return all;
  }

  /// Counts the pixels of up to kWarp mixed cells, one by a lane, for one target after the other.
  ALIGNMASK_DEVICE void count_mixed(const unsigned short* cells, int count, int first_row) const {
    const int cell = cells[lane() < count ? lane() : 0];
    const int row = first_row + (cell >> 9), query = cell >> 5 & (kIouCellQueries - 1),
              bit = cell & 31;
    const int column = word * kIouCellsOfWord + bit - 1;
    const T* const from = predictions + query * params.predictions_strides[1];
    const T* const above = from + row_within(row - 1) * params.predictions_strides[2];
    const T* const below = from + row_within(row) * params.predictions_strides[2];
    const Int64 left = column_within(column - 1) * params.predictions_strides[3];
    const Int64 right = column_within(column) * params.predictions_strides[3];
    const F corners[2][2] = {{to_arithmetic(above[left]), to_arithmetic(above[right])},
                             {to_arithmetic(below[left]), to_arithmetic(below[right])}};
    const auto part = [](int i) {
      return UpsamplingPhase<F>::of(kIouCellFactor / 2 + i, kIouCellFactor).part;
    };
    UInt32 set = 0;
#pragma unroll
    for (int x = 0; x < kIouCellFactor; ++x) {
      const F top = blend(corners[0][0], corners[0][1], part(x)),
              bottom = blend(corners[1][0], corners[1][1], part(x));
#pragma unroll
      for (int y = 0; y < kIouCellFactor; ++y)
        if (blend(top, bottom, part(y)) > threshold) set |= 1u << (kIouCellFactor * y + x);
    }
    if (lane() >= count) set = 0;
    const unsigned short* const of_cell =
        params.pixels + (row * params.row_words + word) * kWarp + bit;
    const int of_target = cell_words(params) * kWarp;
    UInt32* to = sums + query * kIouCellSums;
    constexpr int kAtOnce = 4;
#pragma unroll 1
    for (int i = 0; i < target_count; i += kAtOnce, to += kAtOnce) {
      UInt32 common[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        common[j] = of_cell[static_cast<Int64>(targets[i + j]) * of_target] & set;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (common[j]) atomicAdd(to + j, __popc(common[j]));
    }
  }

  /// Counts rows [first, end) of cells.
  ALIGNMASK_DEVICE void count(int first, int end) const {
    UInt32 above = 0;
    int noted = 0;  // mixed cells
    for (int row = first - 1; row < end; ++row) {
      const UInt32 below = classify(row), uniform = above & below;
      above = below;
      if (row < first) continue;
      count_set(uniform, row);
      const UInt32 mixed = ~(uniform | __shfl_xor_sync(kFullWarp, uniform, kIouCellQueries)) & ~1u;
      if (__any_sync(kFullWarp, mixed != 0)) noted = note_mixed(mixed, row - first, noted);
      for (const int few = row + 1 < end ? kWarp : 1; noted >= few;) {
        const int count = smaller(noted, kWarp);
        noted -= count;
        count_mixed(mixed_cells + noted, count, first);
      }
      __syncwarp();
    }
  }
};

/// The last tile of an image starts earlier, so that it has the full number of predictions, and
/// skips those that the tile before it counts.
struct CellTile : IouTile {
  int counted;  // by the tile before
};

ALIGNMASK_DEVICE CellTile cell_tile(const MaskIouParams& params, int block) {
  CellTile tile = {iou_tile<kIouCellQueries>(params, block), 0};
  tile.counted = larger(tile.first_query + kIouCellQueries - params.queries, 0);
  tile.first_query -= tile.counted;
  return tile;
}

/// Counts the pixels that kIouCellQueries predictions of an image share with up to 31 of its
/// targets, and those of the predictions themselves. A warp takes a strip: a word's width of a band
/// of rows. It turns logits into words by ballots; a lane has those of one prediction, and four
/// neighbouring bits make a cell. Then every lane counts what cells that are set have in its
/// target, lane 0 in the image. Mixed cells are noted until there is one for every lane.
template <class T>
ALIGNMASK_KERNEL(kIouThreads, sizeof(T) == 8 ? 2 : 4)
mask_iou_count_cells(ALIGNMASK_PARAMS MaskIouParams params) {
  ALIGNMASK_SHARED(int, found, kWarp);
  ALIGNMASK_SHARED(UInt32, sums, kIouCellQueries * kIouCellSums);
  ALIGNMASK_SHARED(UInt32, ballots, kIouWarps * kWarp);
  ALIGNMASK_SHARED(unsigned short, mixed_cells, kIouWarps* kIouMixedCells);

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int block = static_cast<int>(blockIdx.x);
  const CellTile tile = cell_tile(params, block);
  if (warp == 0) find_targets(params, tile.image, tile.chunk, lane, found);
  for (int i = threadIdx.x; i < kIouCellQueries * kIouCellSums; i += kIouThreads) sums[i] = 0;
  __syncthreads();
  const int target = found[lane];
  const int target_count = 1 + __popc(__ballot_sync(kFullWarp, target < params.target_count));
  if (target_count == 1) return;

  const int strip = tile.band * kIouWarps + warp;
  if (strip < params.strips) {
    const int band = strip / params.row_words, first = band * params.band_rows;
    const CellCounter<T> counter = {
        params,
        static_cast<const T*>(params.predictions) + tile.image * params.predictions_strides[0] +
            tile.first_query * params.predictions_strides[1],
        static_cast<Arithmetic<T>>(params.threshold),
        (1u << kIouCellQueries) - (1u << tile.counted),
        strip - band * params.row_words,
        target,
        target_count,
        found,
        sums,
        ballots + warp * kWarp,
        mixed_cells + warp * kIouMixedCells,
    };
    counter.count(first, smaller(first + params.band_rows, params.height + 1));
  }
  __syncthreads();
  add_sums<kIouCellQueries, kIouCellSums>(params, cell_tile(params, recomputed(block)), target,
                                          sums);
}

}  // namespace alignmask
