// Warps cut into groups of kLanes neighbouring lanes (a power of two) that work on one thing
// together.
#pragma once

#include "ptx.cuh"

namespace alignmask {

ALIGNMASK_DEVICE float exponential(float x) { return expf(x); }
ALIGNMASK_DEVICE double exponential(double x) { return exp(x); }
ALIGNMASK_DEVICE float power_of(float base, float exponent) { return powf(base, exponent); }
ALIGNMASK_DEVICE double power_of(double base, double exponent) { return pow(base, exponent); }
ALIGNMASK_DEVICE float floor_of(float x) { return floorf(x); }
ALIGNMASK_DEVICE double floor_of(double x) { return floor(x); }

template <class F>
ALIGNMASK_DEVICE F infinity() {
  return static_cast<F>(bits_to_float(0x7f800000u));
}

/// x of all lanes of the group, combined pairwise: every lane gets the result, the same in each.
template <int kLanes, class F, class Join>
ALIGNMASK_DEVICE F reduce(F x, Join join) {
  for (int step = kLanes / 2; step > 0; step /= 2) x = join(x, __shfl_xor_sync(kFullWarp, x, step));
  return x;
}

/// The sum of x over the lanes of the warp up to and including the caller.
template <class T>
ALIGNMASK_DEVICE T running_sum(T x) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int step = 1; step < kWarp; step *= 2) {
    const T before = __shfl_up_sync(kFullWarp, x, static_cast<unsigned>(step));
    if (lane >= step) x += before;
  }
  return x;
}

}  // namespace alignmask
