// Bilinear sampling at normalised coordinates: align_corners=False, zero outside. For scalars and
// for packs of lanes.
#pragma once

#include "target.h"

namespace alignmask::ALIGNMASK_ISA {

/// Coordinate in [0, 1] over an axis of `size` pixels -> position among the pixel centres. The
/// position p is between the pixels floor(p) and floor(p) + 1; it is outside, and samples zero,
/// unless -1 <= p < size. (At -1, too, but there the slope towards pixel 0 begins, as in torch's
/// grid_sample.)
template <class F>
ALIGNMASK_HOST_DEVICE F pixel_position(F coordinate, F size) {
  return coordinate * size - 0.5f;
}

/// Largest integer at or below a number that an I can hold.
template <class I, class F>
ALIGNMASK_HOST_DEVICE I floor_index(F position) {
  const I truncated = static_cast<I>(position);
  return truncated - (static_cast<F>(truncated) > position);
}

/// One value for each of the four pixels around a position.
template <class F>
struct Corners {
  F top_left, top_right, bottom_left, bottom_right;
};

template <class F>
ALIGNMASK_HOST_DEVICE Corners<F> operator+(const Corners<F>& a, const Corners<F>& b) {
  return {a.top_left + b.top_left, a.top_right + b.top_right, a.bottom_left + b.bottom_left,
          a.bottom_right + b.bottom_right};
}

/// Their weights; `x`, `y`: how far the position is past the top left pixel, in [0, 1).
template <class F>
ALIGNMASK_HOST_DEVICE Corners<F> corner_weights(F x, F y) {
  const F left = 1 - x, above = 1 - y;
  return {above * left, above * x, y * left, y * x};
}

}  // namespace alignmask::ALIGNMASK_ISA
