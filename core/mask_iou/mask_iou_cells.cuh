// Mask IoU of predictions that are upsampled by kIouCellFactor = 4, by cells.
//
// A cell is what lies between four neighbouring logits of a prediction: 4 x 4 pixels, blended of these four. Where all
// of them are above the threshold, so is every pixel between, and where none is, none is. Then it is enough to know how
// many of the cell's pixels each target has; only mixed cells are looked at pixel by pixel. Cells at the border reach
// out of the image: their logits outside are the outermost ones, their pixels outside count nowhere.
//
// Predictions have (h + 1) x (w + 1) cells. The 32 columns of a warp have 31 cells between them, which make a word:
// lane i reads column word · 31 + i - 1, and bit i is the cell to its left; bit 0 stays empty. A word of a target has
// - planes: digit p of a cell's number of pixels, in binary, is the cell's bit of plane p;
// - pixels: pixel (y, x) of a cell is the cell's bit of the word number 4 y + x.
// Behind the last target comes the image as one more, of which every pixel is set: it counts areas.
#pragma once

#include "../common/vector.cuh"
#include "../common/warp.cuh"
#include "mask_iou_math.h"
#include "mask_iou_params.h"
#include "mask_iou_tile.cuh"

namespace alignmask {

/// Number of a word of cells among those of all targets.
ALIGNMASK_DEVICE Int64 cell_word(const MaskIouParams& params, int target, int row, int word) {
  return (static_cast<Int64>(target) * (params.height + 1) + row) * params.row_words + word;
}

/// Packs targets and measures their areas. A warp takes a row of cells. kAligned: rows can be read 4 bytes at a time.
template <bool kAligned>
ALIGNMASK_KERNEL(kIouThreads, 6)
mask_iou_pack_cells(ALIGNMASK_PARAMS MaskIouParams params) {
  const int lane = threadIdx.x % kWarp;
  const Int64 line = static_cast<Int64>(blockIdx.x) * kIouWarps + threadIdx.x / kWarp;
  const int target = static_cast<int>(line / (params.height + 1)), row = static_cast<int>(line % (params.height + 1));
  if (target > params.target_count) return;
  const bool is_image = target == params.target_count;
  const auto* const mask = static_cast<const unsigned char*>(params.targets) + target * params.targets_strides[0];
  const int top = row * kIouCellFactor - kIouCellFactor / 2;
  UInt32 area = 0;  // this lane's part
  for (int word = 0; word < params.row_words; ++word) {
    // The 4 x 4 pixels around column `column` of the predictions, in the order of words. Its left half belongs to the
    // cell on the left, its right half to the one on the right.
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
    UInt32 plane = 0, pixels = 0;  // number `lane`
    if (__any_sync(kFullWarp, cell != 0)) {
      for (int i = 0; i < kIouCellPlanes; ++i) {
        const UInt32 ballot = __ballot_sync(kFullWarp, count >> i & 1);
        if (lane == i) plane = ballot;
      }
      for (int i = 0; i < kIouCellPixels; ++i) {
        const UInt32 ballot = __ballot_sync(kFullWarp, cell >> i & 1);
        if (lane == i) pixels = ballot;
      }
    }
    const Int64 at = cell_word(params, target, row, word);
    if (lane < kIouPlaneWords) params.planes[at * kIouPlaneWords + lane] = plane;
    if (lane < kIouCellPixels) params.pixels[at * kIouCellPixels + lane] = pixels;
  }
  area = reduce<kWarp>(area, [](UInt32 a, UInt32 b) { return a + b; });
  if (lane == 0 && area && !is_image) atomicAdd(params.target_area + target, static_cast<UInt64>(area));
}

/// What a warp of mask_iou_count_cells works with.
template <class T>
struct CellCounter {
  using F = Arithmetic<T>;

  const MaskIouParams& params;
  int lane, target;  // that the lane counts
  UInt32 queries;    // bit i: is the block to count its prediction i?
  const T* column;   // of the first query, that the lane reads
  F threshold;
  UInt32 *ballots, *sums;  // of the warp, [kWarp]; of the block, [kIouCellQueries, kWarp]

  /// The row itself, or the outermost one.
  ALIGNMASK_DEVICE int within(int row) const { return smaller(larger(row, 0), params.height - 1); }

  /// Lane i: between which neighbours of row `row` prediction i is above the threshold for sure; lane kIouCellQueries +
  /// i: between which it is not.
  ALIGNMASK_DEVICE UInt32 classify(int row) const {
    const auto bounds = ThresholdBounds<F>::of(threshold);
    F values[kIouCellQueries];
    const T* from = column + within(row) * params.predictions_strides[2];
#pragma unroll
    for (int i = 0; i < kIouCellQueries; ++i, from += params.predictions_strides[1]) values[i] = to_arithmetic(*from);
#pragma unroll
    for (int i = 0; i < kIouCellQueries; i += 4) {
      Words<4> set, unset;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        set.word[j] = __ballot_sync(kFullWarp, values[i + j] > bounds.above);
        unset.word[j] = __ballot_sync(kFullWarp, !(values[i + j] > bounds.below));
      }
      if (lane == 0) {
        *reinterpret_cast<Words<4>*>(ballots + i) = set;
        *reinterpret_cast<Words<4>*>(ballots + kIouCellQueries + i) = unset;
      }
    }
    __syncwarp();
    const UInt32 mine = ballots[lane];
    __syncwarp();
    return mine & mine << 1;
  }

  /// Counts the pixels of cells that are set, whose numbers of pixels in the lane's target are given by planes.
  ALIGNMASK_DEVICE UInt32 count_set(UInt32 cells, const UInt32 (&planes)[kIouCellPlanes]) const {
    UInt32 count = 0;
#pragma unroll
    for (int i = 0; i < kIouCellPlanes; ++i) count += __popc(cells & planes[i]) << i;
    return count;
  }

  /// Counts the pixels of prediction `query` in mixed cells.
  ALIGNMASK_DEVICE UInt32 count_mixed(int query, UInt32 cells, int row, Int64 word) const {
    const T* const from = column + query * params.predictions_strides[1];
    const F above = to_arithmetic(from[within(row - 1) * params.predictions_strides[2]]);
    const F below = to_arithmetic(from[within(row) * params.predictions_strides[2]]);
    const F above_left = __shfl_up_sync(kFullWarp, above, 1), below_left = __shfl_up_sync(kFullWarp, below, 1);
    Words<4> pixels[kIouCellFactor];
#pragma unroll
    for (int y = 0; y < kIouCellFactor; ++y)
      pixels[y] = load_constant<4>(params.pixels + word * kIouCellPixels + 4 * y);
    const auto part = [](int i) { return UpsamplingPhase<F>::of(kIouCellFactor / 2 + i, kIouCellFactor).part; };
    F top[kIouCellFactor], bottom[kIouCellFactor];
#pragma unroll
    for (int x = 0; x < kIouCellFactor; ++x) {
      top[x] = blend(above_left, above, part(x));
      bottom[x] = blend(below_left, below, part(x));
    }
    const bool is_mixed = cells >> lane & 1;
    UInt32 count = 0;
#pragma unroll
    for (int y = 0; y < kIouCellFactor; ++y) {
#pragma unroll
      for (int x = 0; x < kIouCellFactor; ++x) {
        const bool is_set = is_mixed && blend(top[x], bottom[x], part(y)) > threshold;
        count += __popc(__ballot_sync(kFullWarp, is_set) & pixels[y].word[x]);
      }
    }
    return count;
  }

  /// Counts rows [first, end) of one word of cells.
  ALIGNMASK_DEVICE void count_strip(int word, int first, int end) const {
    UInt32 above = 0;
    for (int row = first - 1; row < end; ++row) {
      const UInt32 below = classify(row), uniform = above & below;
      above = below;
      if (row < first) continue;
      const UInt32 mixed = ~(uniform | __shfl_xor_sync(kFullWarp, uniform, kIouCellQueries)) & ~1u;
      const Int64 at = cell_word(params, target, row, word);
      UInt32 with_set = __ballot_sync(kFullWarp, uniform != 0) & queries;
      if (with_set) {
        const UInt32* const from = params.planes + at * kIouPlaneWords;
        const Words<4> low = load_constant<4>(from);
        const UInt32 planes[kIouCellPlanes] = {low.word[0], low.word[1], low.word[2], low.word[3],
                                               load_constant<1>(from + 4).word[0]};
        for (; with_set; with_set &= with_set - 1) {
          const int query = __ffs(static_cast<int>(with_set)) - 1;
          atomicAdd(sums + query * kWarp + lane, count_set(__shfl_sync(kFullWarp, uniform, query), planes));
        }
      }
      for (UInt32 with_mixed = __ballot_sync(kFullWarp, mixed != 0) & queries; with_mixed;
           with_mixed &= with_mixed - 1) {
        const int query = __ffs(static_cast<int>(with_mixed)) - 1;
        atomicAdd(sums + query * kWarp + lane, count_mixed(query, __shfl_sync(kFullWarp, mixed, query), row, at));
      }
    }
  }
};

/// The last tile of an image starts earlier, so that it has as many predictions, and leaves out what others count.
struct CellTile : IouTile {
  int counted;  // by the tile before
};

ALIGNMASK_DEVICE CellTile cell_tile(const MaskIouParams& params, int block) {
  CellTile tile = {iou_tile<kIouCellQueries>(params, block), 0};
  tile.counted = larger(tile.first_query + kIouCellQueries - params.queries, 0);
  tile.first_query -= tile.counted;
  return tile;
}

/// Counts the pixels that kIouCellQueries predictions of an image share with up to 31 of its targets, and those of the
/// predictions themselves. A warp takes a strip: a word's width of a band of rows. It turns their logits into words by
/// ballots, four neighbouring bits of which make a cell; a lane does so for one prediction. Then lane m counts for
/// target m what the predictions have in the word, and the last lane for the image.
template <class T>
ALIGNMASK_KERNEL(kIouThreads, sizeof(T) == 8 ? 2 : 4)
mask_iou_count_cells(ALIGNMASK_PARAMS MaskIouParams params) {
  ALIGNMASK_SHARED(int, found, kWarp);
  ALIGNMASK_SHARED(UInt32, ballots, kIouWarps * kWarp);
  ALIGNMASK_SHARED(UInt32, sums, kIouCellQueries * kWarp);

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int block = static_cast<int>(blockIdx.x);
  const CellTile tile = cell_tile(params, block);
  if (warp == 0) find_targets(params, tile.image, tile.chunk, lane, found);
  for (int i = threadIdx.x; i < kIouCellQueries * kWarp; i += kIouThreads) sums[i] = 0;
  __syncthreads();
  if (found[0] < 0) return;

  const int strip = tile.band * kIouWarps + warp;
  if (strip < params.strips) {
    const int band = strip / params.row_words, word = strip - band * params.row_words;
    const int column = smaller(larger(word * kIouCellsOfWord + lane - 1, 0), params.width - 1);
    const T* const image = static_cast<const T*>(params.predictions) + tile.image * params.predictions_strides[0] +
                           tile.first_query * params.predictions_strides[1];
    const CellCounter<T> counter = {params,
                                    lane,
                                    lane == kIouTargets || found[lane] < 0 ? params.target_count : found[lane],
                                    (1u << kIouCellQueries) - (1u << tile.counted),
                                    image + column * params.predictions_strides[3],
                                    static_cast<Arithmetic<T>>(params.threshold),
                                    ballots + warp * kWarp,
                                    sums};
    const int first = band * params.band_rows;
    counter.count_strip(word, first, smaller(first + params.band_rows, params.height + 1));
  }
  __syncthreads();
  add_sums<kIouCellQueries>(params, cell_tile(params, recomputed(block)), found[lane], sums);
}

}  // namespace alignmask
