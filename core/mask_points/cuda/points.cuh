// What the kernels of mask_points share: candidates, and samples at points.
#pragma once

#include "common/cuda/bilinear_taps.cuh"
#include "common/cuda/vector.cuh"
#include "common/cuda/warp.cuh"
#include "mask_points/formula.h"
#include "params.h"

namespace alignmask {

using namespace ALIGNMASK_ISA;

template <class F>
struct Point {
  F x, y;
};

/// The candidates 2 · block and 2 · block + 1 of a row.
template <class F>
struct CandidatePair {
  Point<F> of[2];

  ALIGNMASK_DEVICE CandidatePair(const MaskPointsParams& params, int row, int block) {
    const auto multiply = [](UInt64 word, UInt32 factor) {
      return static_cast<UInt64>(static_cast<UInt32>(word)) * factor;
    };
    const auto random =
        random_words(static_cast<UInt64>(block), static_cast<UInt64>(row), params.seed, multiply);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      of[i] = {coordinate(random.word[2 * i]), coordinate(random.word[2 * i + 1])};
  }

 private:
  ALIGNMASK_DEVICE static F coordinate(UInt64 word) {
    return static_cast<F>(static_cast<UInt32>(word) >> 8) * static_cast<F>(kCoordinateStep);
  }
};

/// The pixel at the top left of a point, and how far past it the point is.
template <class F>
struct PixelPosition {
  int left, top;
  F x_part, y_part;

  ALIGNMASK_DEVICE PixelPosition(Point<F> point, int width, int height) {
    const F column = exact_position(point.x, static_cast<F>(width)),
            row = exact_position(point.y, static_cast<F>(height));
    left = floor_index<int>(column);
    top = floor_index<int>(row);
    x_part = column - static_cast<F>(left);
    y_part = row - static_cast<F>(top);
  }
};

/// Bilinear sample of a map of `width` x `height`; `pixel(x, y)`: of one that exists.
template <class F, class Pixel>
ALIGNMASK_DEVICE F sample_pixels(Point<F> point, int width, int height, Pixel pixel) {
  const PixelPosition<F> at(point, width, height);
  const bool has_left = at.left >= 0, has_right = at.left + 1 < width, has_top = at.top >= 0,
             has_bottom = at.top + 1 < height;
  const Corners<F> corner = {
      has_top && has_left ? pixel(at.left, at.top) : F{0},
      has_top && has_right ? pixel(at.left + 1, at.top) : F{0},
      has_bottom && has_left ? pixel(at.left, at.top + 1) : F{0},
      has_bottom && has_right ? pixel(at.left + 1, at.top + 1) : F{0},
  };
  return blend(corner, at.x_part, at.y_part);
}

/// Of the logits of a row.
template <class T>
ALIGNMASK_DEVICE Arithmetic<T> sample_logits(const MaskPointsParams& params, int row,
                                             Point<Arithmetic<T>> point) {
  const T* const logits = static_cast<const T*>(params.logits) + row * params.logits_strides[0];
  return sample_pixels(point, params.width, params.height, [&](int x, int y) {
    return to_arithmetic(logits[y * params.logits_strides[1] + x * params.logits_strides[2]]);
  });
}

/// Of a mask; 0 if there is none of that number.
template <class F>
ALIGNMASK_DEVICE F sample_target(const MaskPointsParams& params, Int64 mask, Point<F> point) {
  if (mask < 0 || mask >= params.masks_count) return 0;
  const auto* const pixels =
      static_cast<const unsigned char*>(params.masks) + mask * params.masks_strides[0];
  return sample_pixels(point, params.mask_width, params.mask_height, [&](int x, int y) {
    return pixels[y * params.masks_strides[1] + x * params.masks_strides[2]] != 0 ? F{1} : F{0};
  });
}

template <class F>
ALIGNMASK_DEVICE Point<F> read_point(const MaskPointsParams& params, int row, int k) {
  const F* const pair = static_cast<const F*>(params.points) + row * params.points_strides[0] +
                        k * params.points_strides[1];
  return {pair[0], pair[params.points_strides[2]]};
}

/// The four pixels around a point, and the derivatives of a sample there; none outside of [0, 1)².
template <class F>
ALIGNMASK_DEVICE BilinearTaps<F> logit_taps(const MaskPointsParams& params, Point<F> point) {
  const bool inside = point.x >= 0 && point.x < 1 && point.y >= 0 && point.y < 1;
  const PixelPosition<F> at(inside ? point : Point<F>{0, 0}, params.width, params.height);
  return bilinear_taps(corner_indices(inside, at.left, at.top, params.width, params.height, 0),
                       corner_weights(at.x_part, at.y_part));
}

}  // namespace alignmask
