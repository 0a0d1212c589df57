// Choosing and sampling points in CUDA.
#pragma once

#include "points.cuh"

namespace alignmask {

constexpr int kPointWarps = kPointThreads / kWarp;
constexpr int kPointDigitBits = 11, kPointDigits = 1 << kPointDigitBits;

/// How far a sample is from 0, as an integer; NaN is farthest.
ALIGNMASK_DEVICE UInt32 distance_key(float sample) {
  return sample == sample ? float_to_bits(sample) << 1 : ~UInt32{0};
}
ALIGNMASK_DEVICE UInt64 distance_key(double sample) {
  return sample == sample ? double_to_bits(sample) << 1 : ~UInt64{0};
}

/// Writes points, samples and targets; a block owns a row. The candidates are nowhere kept: they
/// are drawn and sampled once for each digit of the keys, to find the largest key that is chosen,
/// and once more to write those that are, in their order.
template <class T>
ALIGNMASK_KERNEL(kPointThreads, sizeof(T) == 8 ? 1 : 2)
mask_points_forward(ALIGNMASK_PARAMS MaskPointsParams params) {
  using F = Arithmetic<T>;
  using Key = decltype(distance_key(F{}));
  ALIGNMASK_SHARED(int, histogram, kPointDigits);
  ALIGNMASK_SHARED(int, found, 2);  // a digit, and how many keys have a smaller one
  ALIGNMASK_SHARED(UInt32, sums, kPointWarps);

  const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp, warp = thread / kWarp;
  const int pairs = params.kept > 0 ? (params.candidates + 1) / 2 : 0;
  const Int64 mask = load_int(params.index, row * params.index_stride, params.index_wide);

  const auto write = [&](int k, Point<F> point, F sample) {
    F* const pair = static_cast<F*>(params.points) + row * params.points_strides[0] +
                    k * params.points_strides[1];
    pair[0] = point.x;
    pair[params.points_strides[2]] = point.y;
    from_arithmetic(
        sample,
        static_cast<T*>(
            params.sampled)[row * params.sampled_strides[0] + k * params.sampled_strides[1]]);
    static_cast<F*>(
        params.targets)[row * params.targets_strides[0] + k * params.targets_strides[1]] =
        sample_target(params, mask, point);
  };

  Key largest = 0;             // that is chosen: its digits so far
  int rank = params.kept - 1;  // its place among the keys that begin with them
  constexpr int kKeyBits = 8 * sizeof(Key);
  for (int shift = kKeyBits; pairs > 0 && shift > 0;) {
    const int bits = smaller(kPointDigitBits, shift), above = shift;
    shift -= bits;
    for (int i = thread; i < kPointDigits; i += kPointThreads) histogram[i] = 0;
    __syncthreads();
    for (int pair = thread; pair < pairs; pair += kPointThreads) {
      const CandidatePair<F> candidates(params, row, pair);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (2 * pair + i >= params.candidates) continue;
        const Key key = distance_key(sample_logits<T>(params, row, candidates.of[i]));
        if (above < kKeyBits && (key ^ largest) >> above) continue;
        atomicAdd(histogram + static_cast<int>(key >> shift & ((Key{1} << bits) - 1)), 1);
      }
    }
    __syncthreads();
    if (warp == 0) {
      for (int first = 0, before = 0;; first += kWarp) {
        const int here = histogram[first + lane], sum = before + running_sum(here);
        const UInt32 reached = __ballot_sync(kFullWarp, sum > rank);
        if (reached) {
          if (lane == __ffs(static_cast<int>(reached)) - 1) {
            found[0] = first + lane;
            found[1] = sum - here;
          }
          break;
        }
        before = __shfl_sync(kFullWarp, sum, kWarp - 1);
      }
    }
    __syncthreads();
    largest |= static_cast<Key>(found[0]) << shift;
    rank -= found[1];
  }

  // Of keys that equal the largest, the first `equals` are chosen. A candidate's place is the
  // number of smaller keys before it, and of equal ones, up to that.
  const int equals = rank + 1;
  int smaller_before = 0, equal_before = 0;
  for (int first = 0; first < pairs; first += kPointThreads) {
    const int pair = first + thread;
    const CandidatePair<F> candidates(params, row, pair);
    F sample[2];
    bool is_smaller[2], is_equal[2];
    UInt32 mine = 0;  // smaller keys in the lower half, equal ones in the upper
    for (int i = 0; i < 2; ++i) {
      sample[i] = sample_logits<T>(params, row, candidates.of[i]);
      const Key key = distance_key(sample[i]);
      const bool exists = 2 * pair + i < params.candidates;
      is_smaller[i] = exists && key < largest;
      is_equal[i] = exists && key == largest;
      mine += (is_smaller[i] ? 1u : 0u) + (is_equal[i] ? 1u << 16 : 0u);
    }
    const UInt32 sum = running_sum(mine);
    if (lane == kWarp - 1) sums[warp] = sum;
    __syncthreads();
    UInt32 earlier = sum - mine, all = 0;
    for (int w = 0; w < kPointWarps; ++w) {
      if (w < warp) earlier += sums[w];
      all += sums[w];
    }
    int smaller_here = smaller_before + static_cast<int>(earlier & 0xffffu);
    int equal_here = equal_before + static_cast<int>(earlier >> 16);
    for (int i = 0; i < 2; ++i) {
      if (is_smaller[i] || (is_equal[i] && equal_here < equals))
        write(smaller_here + smaller(equal_here, equals), candidates.of[i], sample[i]);
      smaller_here += is_smaller[i];
      equal_here += is_equal[i];
    }
    smaller_before += static_cast<int>(all & 0xffffu);
    equal_before += static_cast<int>(all >> 16);
    __syncthreads();  // the sums have been read
  }

  for (int k = params.kept + thread; k < params.points_per_row; k += kPointThreads) {
    const int index = params.candidates + k - params.kept;
    const CandidatePair<F> candidates(params, row, index / 2);
    const Point<F> point = index % 2 ? candidates.of[1] : candidates.of[0];
    write(k, point, sample_logits<T>(params, row, point));
  }
}

}  // namespace alignmask
