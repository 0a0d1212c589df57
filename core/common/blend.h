// Linear interpolation, for scalars and for packs of lanes.
#pragma once

#include "target.h"

namespace alignmask::ALIGNMASK_ISA {

template <class F>
ALIGNMASK_HOST_DEVICE F blend(F low, F high, F part) {
  return (1 - part) * low + part * high;
}

}  // namespace alignmask::ALIGNMASK_ISA
