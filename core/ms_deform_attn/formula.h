// The arithmetic at one sampling point, and its vector-Jacobian product. For scalars and for packs
// of points; host and device.
#pragma once

#include "common/bilinear.h"
#include "common/target.h"

namespace alignmask::ALIGNMASK_ISA {

/// What one point adds to the output: Σ over corners of attention_tap_weights · value at the
/// corner.
template <class F>
ALIGNMASK_HOST_DEVICE Corners<F> attention_tap_weights(F x, F y, F weight) {
  const Corners<F> corner = corner_weights(x, y);
  return {weight * corner.top_left, weight * corner.top_right, weight * corner.bottom_left,
          weight * corner.bottom_right};
}

template <class F>
struct PointGradient {
  F location_x, location_y, weight;
};

/// `dots`: <gradient of the output, value> at every corner, 0 outside the level. `x`, `y`: position
/// past the top left corner. The gradient with respect to the corners' values is
/// attention_tap_weights · gradient of the output.
template <class F>
ALIGNMASK_HOST_DEVICE PointGradient<F> point_gradient(const Corners<F>& dots, F x, F y, F weight,
                                                      F width, F height) {
  const F left = 1 - x, above = 1 - y;
  const F top = left * dots.top_left + x * dots.top_right;
  const F bottom = left * dots.bottom_left + x * dots.bottom_right;
  const F slope_x =
      above * (dots.top_right - dots.top_left) + y * (dots.bottom_right - dots.bottom_left);
  return {weight * width * slope_x, weight * height * (bottom - top), above * top + y * bottom};
}

}  // namespace alignmask::ALIGNMASK_ISA
