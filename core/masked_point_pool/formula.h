// A sampling point on a map, and a mask's sample there; host and device.
#pragma once

#include "common/bilinear.h"
#include "common/target.h"

namespace alignmask::ALIGNMASK_ISA {

/// Where a point falls on a map: the pixel at its top left, which may lie outside, and how far past
/// it the point is.
template <class F, class I = long long>
struct PointOnMap {
  I x, y;
  F x_part, y_part;
  /// Whether the point touches a pixel. A NaN point counts as touching pixel (0, 0), and its x_part
  /// and y_part are NaN.
  bool inside;

  /// `x`, `y`: normalised.
  static ALIGNMASK_HOST_DEVICE PointOnMap of(F x, F y, I width, I height) {
    if (width <= 0 || height <= 0) return {-1, -1, 0, 0, false};
    const F column = pixel_position<F>(x, static_cast<F>(width)),
            row = pixel_position<F>(y, static_cast<F>(height));
    if (column != column || row != row) return {0, 0, column + row, column + row, true};
    if (!(column >= -1 && column < static_cast<F>(width) && row >= -1 &&
          row < static_cast<F>(height)))
      return {-1, -1, 0, 0, false};
    const I left = floor_index<I>(column), top = floor_index<I>(row);
    return {left, top, column - static_cast<F>(left), row - static_cast<F>(top), true};
  }
};

/// Bilinear sample of a mask; `pixel(x, y)`: is that pixel, which exists, set? NaN for a NaN point.
template <class F, class I, class Pixel>
ALIGNMASK_HOST_DEVICE F sample_mask(const PointOnMap<F, I>& point, decltype(I{}) width,
                                    decltype(I{}) height, Pixel pixel) {
  if (!point.inside) return 0;
  if (point.x_part != point.x_part) return point.x_part;
  const Corners<F> weight = corner_weights(point.x_part, point.y_part);
  const bool left = point.x >= 0, right = point.x + 1 < width, top = point.y >= 0,
             bottom = point.y + 1 < height;
  F sum = 0;
  if (top && left && pixel(point.x, point.y)) sum += weight.top_left;
  if (top && right && pixel(point.x + 1, point.y)) sum += weight.top_right;
  if (bottom && left && pixel(point.x, point.y + 1)) sum += weight.bottom_left;
  if (bottom && right && pixel(point.x + 1, point.y + 1)) sum += weight.bottom_right;
  return sum;
}

}  // namespace alignmask::ALIGNMASK_ISA
