// Bilinear resizing along one axis, and the probability of a logit; host and device.
#pragma once

#include "common/blend.h"
#include "common/exp_log.h"
#include "common/target.h"

namespace alignmask::ALIGNMASK_ISA {

/// Pixel `i` of a resized axis lies between the source pixels `first` and `first + 1`, `part` of
/// the way. Behind the last source pixel comes that pixel once more.
template <class F>
struct ResizeTap {
  int first;
  F part;

  /// In the arithmetic of torch's F.interpolate, `scale` = source size / resized size, rounded to
  /// F: positions far from 0 are rounded, so an exact one would be another one.
  static ALIGNMASK_HOST_DEVICE ResizeTap of(int i, F scale, int source) {
    const F position = scale * (static_cast<F>(i) + F(0.5)) - F(0.5);
    if (!(position > 0)) return {0, 0};
    const int floor = static_cast<int>(position), first = floor < source ? floor : source - 1;
    const F part = position - static_cast<F>(first);
    return {first, part < 1 ? part : F(1)};
  }
};

/// Of a logit above 0; for scalars and for packs.
template <class P>
ALIGNMASK_HOST_DEVICE P probability_of(P logit) {
  return 1 / (1 + exp_of_negative(-logit));
}

}  // namespace alignmask::ALIGNMASK_ISA
