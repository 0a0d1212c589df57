// Run lengths of masks in CUDA, and every instantiation of the kernels. A warp has a column of one
// mask, 32 rows of it at a time by one ballot. Every pixel is blended anew of its four (sixteen)
// logits. Sums are added up in one order, whatever runs first.
#pragma once

#include "common/cuda/vector.cuh"
#include "common/cuda/warp.cuh"
#include "mask_rle/formula.h"
#include "params.h"

namespace alignmask {

using namespace ALIGNMASK_ISA;

/// A pixel of a resized axis: both source pixels, and how far it lies on the way.
template <class F>
struct RleTap {
  int first, second;
  F part;

  ALIGNMASK_DEVICE static RleTap of(int i, double scale, int source, bool same) {
    if (same) return {i, i, 0};
    const auto tap = ResizeTap<F>::of(i, static_cast<F>(scale), source);
    return {tap.first, smaller(tap.first + 1, source - 1), tap.part};
  }
};

/// The warp's column.
template <class T>
struct RleColumn {
  using F = Arithmetic<T>;

  const MaskRleParams& params;
  int mask, x;

  ALIGNMASK_DEVICE static RleColumn of(const MaskRleParams& params) {
    const Int64 index = static_cast<Int64>(blockIdx.x) * kRleWarps + threadIdx.x / kWarp;
    return {params, static_cast<int>(index / params.columns.size),
            static_cast<int>(index % params.columns.size)};
  }

  ALIGNMASK_DEVICE bool exists() const { return mask < params.masks; }
  ALIGNMASK_DEVICE bool last() const { return x == params.columns.size - 1; }
  ALIGNMASK_DEVICE Int64 index() const {
    return static_cast<Int64>(mask) * params.columns.size + x;
  }

  ALIGNMASK_DEVICE F logit(int row, int column) const {
    return to_arithmetic(static_cast<const T*>(
        params.logits)[mask * params.logits_strides[0] + row * params.logits_strides[1] +
                       column * params.logits_strides[2]]);
  }

  ALIGNMASK_DEVICE F padded(int row, int column) const {
    const RleAxis &rows = params.rows, &columns = params.columns;
    if (rows.pad_same) return logit(row, column);
    const auto down = RleTap<F>::of(row, rows.pad_scale, rows.logits, false),
               across = RleTap<F>::of(column, columns.pad_scale, columns.logits, false);
    return blend(
        blend(logit(down.first, across.first), logit(down.first, across.second), across.part),
        blend(logit(down.second, across.first), logit(down.second, across.second), across.part),
        down.part);
  }

  ALIGNMASK_DEVICE F full(int row, int column) const {
    const RleAxis &rows = params.rows, &columns = params.columns;
    if (rows.same) return padded(row, column);
    const auto down = RleTap<F>::of(row, rows.scale, rows.valid, false),
               across = RleTap<F>::of(column, columns.scale, columns.valid, false);
    return blend(
        blend(padded(down.first, across.first), padded(down.first, across.second), across.part),
        blend(padded(down.second, across.first), padded(down.second, across.second), across.part),
        down.part);
  }

  /// Calls each(y, value, set, changes) for every 32 rows, in order: the lane's row and its value
  /// (0 behind the last row), which lanes' pixels are set, and which differ from the one before.
  template <class Each>
  ALIGNMASK_DEVICE void each_rows(Each each) const {
    const int height = params.rows.size;
    UInt32 before = x > 0 && full(height - 1, x - 1) > 0;
    for (int first = 0; first < height; first += kWarp) {
      const int y = first + static_cast<int>(threadIdx.x) % kWarp;
      const F value = y < height ? full(y, x) : F(0);
      const UInt32 set = __ballot_sync(kFullWarp, value > 0);
      UInt32 changes = set ^ (set << 1 | before);
      if (height - first < kWarp) changes &= (1u << (height - first)) - 1;
      before = set >> (kWarp - 1);
      each(y, value, set, changes);
    }
  }
};

/// Measures columns.
template <class T>
ALIGNMASK_KERNEL(kRleThreads, 4)
mask_rle_measure(ALIGNMASK_PARAMS MaskRleParams params) {
  using F = Arithmetic<T>;
  const auto column = RleColumn<T>::of(params);
  if (!column.exists()) return;
  F sum = 0;  // the lane's
  int runs = column.last(), area = 0, first = params.rows.size, past = 0;
  column.each_rows([&](int y, F value, UInt32 set, UInt32 changes) {
    runs += __popc(changes);
    area += __popc(set);
    if (!(value > 0)) return;
    sum += probability_of(value);
    first = smaller(first, y);
    past = y + 1;
  });
  sum = reduce<kWarp>(sum, [](F a, F b) { return a + b; });
  first = reduce<kWarp>(first, [](int a, int b) { return smaller(a, b); });
  past = reduce<kWarp>(past, [](int a, int b) { return larger(a, b); });
  if (threadIdx.x % kWarp != 0) return;
  params.runs[column.mask * params.runs_strides[0] + column.x * params.runs_strides[1]] = runs;
  params.sums[column.index()] = static_cast<double>(sum);
  params.set[column.index()] = area;
  params.first_set[column.index()] = first;
  params.past_set[column.index()] = past;
}

/// Adds up the columns of a mask, by a warp. F: the type of `probability`.
template <class F>
ALIGNMASK_KERNEL(kRleThreads, 4)
mask_rle_sum(ALIGNMASK_PARAMS MaskRleParams params) {
  const int lane = threadIdx.x % kWarp;
  const Int64 mask = static_cast<Int64>(blockIdx.x) * kRleWarps + threadIdx.x / kWarp;
  if (mask >= params.masks) return;
  const int width = params.columns.size;
  double sum = 0;
  Int64 area = 0;
  int left = width, right = 0, top = params.rows.size, bottom = 0;
  for (int x = lane; x < width; x += kWarp) {
    const Int64 at = mask * width + x;
    if (params.set[at] == 0) continue;
    sum += params.sums[at];
    area += params.set[at];
    left = smaller(left, x);
    right = x + 1;
    top = smaller(top, params.first_set[at]);
    bottom = larger(bottom, params.past_set[at]);
  }
  sum = reduce<kWarp>(sum, [](double a, double b) { return a + b; });
  area = reduce<kWarp>(area, [](Int64 a, Int64 b) { return a + b; });
  const auto least = [](int a, int b) { return smaller(a, b); };
  const auto most = [](int a, int b) { return larger(a, b); };
  const int box[4] = {reduce<kWarp>(left, least), reduce<kWarp>(top, least),
                      reduce<kWarp>(right, most), reduce<kWarp>(bottom, most)};
  if (lane != 0) return;
  params.area[mask * params.area_stride] = area;
  for (int i = 0; i < 4; ++i)
    params.box[mask * params.box_strides[0] + i * params.box_strides[1]] = area > 0 ? box[i] : 0;
  static_cast<F*>(params.probability)[mask * params.probability_stride] =
      static_cast<F>(area > 0 ? sum / static_cast<double>(area) : 0.0);
}

/// Where the counts of columns lie; nowhere, unless `ends` leads into `counts`.
struct RleRoom {
  Int64 begin, end;
};

ALIGNMASK_DEVICE RleRoom rle_room(const MaskRleParams& params, int mask, int x) {
  const auto end_of = [&](int n, int column) {
    return params.ends[n * params.ends_strides[0] + column * params.ends_strides[1]];
  };
  const Int64 end = end_of(mask, x);
  const Int64 begin = x > 0      ? end_of(mask, x - 1)
                      : mask > 0 ? end_of(mask - 1, params.columns.size - 1)
                                 : 0;
  if (begin < 0 || end > params.count_total) return {0, 0};
  return {begin, end};
}

/// Writes where runs end.
template <class T>
ALIGNMASK_KERNEL(kRleThreads, 4)
mask_rle_changes(ALIGNMASK_PARAMS MaskRleParams params) {
  using F = Arithmetic<T>;
  const auto column = RleColumn<T>::of(params);
  if (!column.exists()) return;
  const int lane = threadIdx.x % kWarp;
  const RleRoom room = rle_room(params, column.mask, column.x);
  const Int64 end = room.end - column.last();
  Int64 at = room.begin;
  if (at < end) {
    column.each_rows([&](int y, F, UInt32, UInt32 changes) {
      const Int64 mine = at + __popc(changes & ((1u << lane) - 1));
      if (changes >> lane & 1 && mine < end) params.changes[mine] = column.x * params.rows.size + y;
      at += __popc(changes);
    });
  }
  if (column.last() && lane == 0 && room.begin < room.end)
    params.changes[room.end - 1] = params.columns.size * params.rows.size;
}

/// Turns the ends of runs into their lengths.
template <int kThreads>
ALIGNMASK_KERNEL(kThreads, 8)
mask_rle_subtract(ALIGNMASK_PARAMS MaskRleParams params) {
  const Int64 index = static_cast<Int64>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int mask = static_cast<int>(index / params.columns.size),
            x = static_cast<int>(index % params.columns.size);
  if (mask >= params.masks) return;
  const Int64 first = rle_room(params, mask, 0).begin;
  const RleRoom room = rle_room(params, mask, x);
  for (Int64 k = room.begin + threadIdx.x % kWarp; k < room.end; k += kWarp)
    params.counts[k * params.counts_stride] =
        params.changes[k] - (k > first ? params.changes[k - 1] : 0);
}

}  // namespace alignmask

// mask_rle_measure and mask_rle_changes: <element type>
#define ALIGNMASK_KERNELS(X)    \
  X(mask_rle_measure<float>)    \
  X(mask_rle_measure<double>)   \
  X(mask_rle_measure<Half>)     \
  X(mask_rle_measure<BFloat16>) \
  X(mask_rle_sum<float>)        \
  X(mask_rle_sum<double>)       \
  X(mask_rle_changes<float>)    \
  X(mask_rle_changes<double>)   \
  X(mask_rle_changes<Half>)     \
  X(mask_rle_changes<BFloat16>) \
  X(mask_rle_subtract<256>)
