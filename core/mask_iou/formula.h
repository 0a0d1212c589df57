// Upsampling by an integer factor, and the IoU of counted pixels; host and device.
#pragma once

#include "common/blend.h"
#include "common/target.h"
#if !defined(__CUDACC__)
#include <cstdint>
#endif

namespace alignmask::ALIGNMASK_ISA {

/// Output pixel i · factor + phase, for any i, lies between the source pixels i + first and i +
/// first + 1, `part` of the way. Source pixels outside the map count as the outermost ones.
template <class F>
struct UpsamplingPhase {
  int first;
  F part;

  static ALIGNMASK_HOST_DEVICE UpsamplingPhase of(int phase, int factor) {
    const F position = (static_cast<F>(phase) + F(0.5)) / static_cast<F>(factor) - F(0.5);
    const int first = position < 0 ? -1 : 0;
    return {first, position - static_cast<F>(first)};
  }
};

/// Where rounding cannot matter: of values above `above`, every blend is above the threshold, and
/// of values none of which is above `below`, none is. The values may be infinite or NaN, and blends
/// be blended once more; `part` is neither 0 nor 1, for infinity times zero would be NaN.
///
/// Proof: products with constants and sums stay in order when they are rounded, so that values
/// above x blend to no less than x blended with itself. That differs from x by rounding, twice at
/// most 5/2 units in the last place, of which the bounds leave eight. Products below the normal
/// numbers lose more; the smallest normal number makes up for them.
template <class F>
struct ThresholdBounds {
  F above, below;

  static ALIGNMASK_HOST_DEVICE ThresholdBounds of(F threshold) {
    constexpr F kMargin = static_cast<F>(sizeof(F) == 8 ? 0x1p-49 : 0x1p-20);
    constexpr F kSmallest = static_cast<F>(sizeof(F) == 8 ? 0x1p-1022 : 0x1p-126);
    const F margin = kMargin * (threshold < 0 ? -threshold : threshold) + kSmallest;
    // nothing blends zeros to more
    return {threshold + margin, threshold == 0 ? threshold : threshold - margin};
  }
};

/// Sizes in pixels. Two empty masks have IoU 0.
ALIGNMASK_HOST_DEVICE double iou_of(long long prediction, long long target, long long both) {
  const long long either = prediction + target - both;
  return either > 0 ? static_cast<double>(both) / static_cast<double>(either) : 0.0;
}

}  // namespace alignmask::ALIGNMASK_ISA
