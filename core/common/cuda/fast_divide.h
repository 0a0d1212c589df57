// Division of small integers by a number that is only known at the launch, as one multiplication.
// Host and device.
#pragma once

#include "common/target.h"

namespace alignmask {

/// n / divisor for 0 <= n < 2^31 (Granlund and Montgomery 1994: round the reciprocal up, with one
/// bit to spare).
struct FastDivide {
  unsigned multiplier = 0;
  unsigned shift = 0;

  FastDivide() = default;
  ALIGNMASK_HOST_DEVICE explicit FastDivide(unsigned divisor) {  // 1 <= divisor < 2^31
    while (shift < 31 && (1u << shift) < divisor) ++shift;
    multiplier = static_cast<unsigned>(((1ull << (31 + shift)) + divisor - 1) / divisor);
  }

  ALIGNMASK_HOST_DEVICE int quotient(int n) const {
    return static_cast<int>(
        static_cast<unsigned long long>(static_cast<unsigned>(n)) * multiplier >> (31 + shift));
  }
};

}  // namespace alignmask
