// The four elements of a map that a bilinear sample reads.
#pragma once

#include "common/bilinear.h"
#include "device.cuh"

namespace alignmask {

/// Their indices, top left, top right, bottom left, bottom right; -1: it lies outside, and counts
/// as zero.
struct CornerIndices {
  int corner[4];
};

/// Around a position between the columns `left` and `left` + 1 and the rows `top` and `top` + 1 of
/// a map in row-major order whose first element has the index `first`. Not `inside`: none.
ALIGNMASK_DEVICE CornerIndices corner_indices(bool inside, int left, int top, int width, int height,
                                              int first) {
  const int index = first + top * width + left;
  const bool has_left = inside && left >= 0, has_right = inside && left + 1 < width;
  const bool has_top = top >= 0, has_bottom = top + 1 < height;
  return {{has_top && has_left ? index : -1, has_top && has_right ? index + 1 : -1,
           has_bottom && has_left ? index + width : -1,
           has_bottom && has_right ? index + width + 1 : -1}};
}

/// Index and weight of each.
template <class F>
struct alignas(16) BilinearTaps {
  CornerIndices indices;
  F weight[4];
};

template <class F>
ALIGNMASK_DEVICE BilinearTaps<F> bilinear_taps(const CornerIndices& indices,
                                               const ALIGNMASK_ISA::Corners<F>& weight) {
  return {indices, {weight.top_left, weight.top_right, weight.bottom_left, weight.bottom_right}};
}

}  // namespace alignmask
