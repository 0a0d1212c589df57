// Upsampling by an integer factor, and the IoU of counted pixels; host and device.
#pragma once

#include "../common/target.h"
#if !defined(__CUDACC__)
#include <cstdint>
#endif

namespace alignmask::ALIGNMASK_ISA {

/// Output pixel i · factor + phase, for any i, lies between the source pixels i + first and i + first + 1, `part` of
/// the way. Source pixels outside the map count as the outermost ones.
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

template <class F>
ALIGNMASK_HOST_DEVICE F blend(F low, F high, F part) {
  return (1 - part) * low + part * high;
}

/// Sizes in pixels. Two empty masks have IoU 0.
ALIGNMASK_HOST_DEVICE double iou_of(long long prediction, long long target, long long both) {
  const long long either = prediction + target - both;
  return either > 0 ? static_cast<double>(both) / static_cast<double>(either) : 0.0;
}

}  // namespace alignmask::ALIGNMASK_ISA
