// Where the sampling points of a query and head fall, shared by the forward and the backward kernels.
//
// A group of kLanes lanes of a warp works on one (image, head, query). Its points are taken kChunk at a time: every
// lane works out one of them and leaves it in shared memory, then all lanes go through the chunk together. So a
// location is read and a level's geometry is computed once per query and head, not once per channel.
#pragma once

#include "../common/vector.cuh"
#include "../common/warp.cuh"
#include "ms_deform_attn_math.h"
#include "ms_deform_attn_params.h"

namespace alignmask {

using namespace ALIGNMASK_ISA;

constexpr int kAttentionThreads = 256;

/// Which (image, head, query) a group works on. Consecutive groups take consecutive queries of one head: neighbours in
/// the image look at the same values, which then come from the cache of the multiprocessor.
struct QueryHead {
  int image, head, query;
  bool exists;  ///< false past the end: such a group repeats the last one, and writes nothing
};

ALIGNMASK_DEVICE QueryHead query_head(const MSDeformAttnParams& params, Int64 index) {
  const bool exists = index < params.query_heads;
  if (!exists) index = params.query_heads - 1;
  int slice;  // image · N + head
  if (params.query_heads <= 0x7fffffff) {
    slice = params.by_queries.quotient(static_cast<int>(index));
  } else {
    slice = static_cast<int>(index / params.queries);
  }
  const int image = params.by_heads.quotient(slice);
  return {image, slice - image * params.heads, static_cast<int>(index - static_cast<Int64>(slice) * params.queries),
          exists};
}

/// The four tokens around a point; -1: there is none, it counts as zero.
struct Tokens {
  int corner[4];
};

/// A point as the lanes need it.
template <class F>
struct Position {
  F x, y;  ///< past the top left token
  Tokens tokens;
};

/// (x, y): pixels of a level, pixel centres at whole numbers. NaN stays NaN, and has no tokens.
template <class F>
ALIGNMASK_DEVICE Position<F> place_point(const MSDeformAttnParams& params, int level, F x, F y) {
  const int height = params.height[level], width = params.width[level];
  const bool inside = x >= -1 && x < static_cast<F>(width) && y >= -1 && y < static_cast<F>(height);
  const F low_x = inside ? floor_of(x) : 0, low_y = inside ? floor_of(y) : 0;
  const int left = static_cast<int>(low_x), top = static_cast<int>(low_y);
  const int token = params.first_token[level] + top * width + left;
  const bool has_left = inside && left >= 0, has_right = inside && left + 1 < width;
  const bool has_top = top >= 0, has_bottom = top + 1 < height;
  Position<F> position;
  position.tokens.corner[0] = has_top && has_left ? token : -1;
  position.tokens.corner[1] = has_top && has_right ? token + 1 : -1;
  position.tokens.corner[2] = has_bottom && has_left ? token + width : -1;
  position.tokens.corner[3] = has_bottom && has_right ? token + width + 1 : -1;
  position.x = inside || x != x ? x - low_x : 0;  // infinity is outside, and must not meet a zero
  position.y = inside || y != y ? y - low_y : 0;
  return position;
}

/// Points of one (image, head, query): their places and weights. kPacked: L, P and the coordinates lie together.
template <class T, int kLanes, bool kPacked>
class Points {
 public:
  using F = Arithmetic<T>;

  ALIGNMASK_DEVICE Points(const MSDeformAttnParams& params, const QueryHead& at, int lane)
      : params_(params),
        at_(at),
        lane_(lane),
        locations_(at.image * params.locations_strides[0] + at.query * params.locations_strides[1] +
                   at.head * params.locations_strides[2]),
        weights_(at.image * params.weights_strides[0] + at.query * params.weights_strides[1] +
                 at.head * params.weights_strides[2]) {
    if (params.reference) find_softmax();
  }

  ALIGNMASK_DEVICE int count() const { return params_.levels * params_.points; }

  ALIGNMASK_DEVICE int level_of(int point) const { return params_.by_points.quotient(point); }

  /// Location of a point of a level, in pixels.
  ALIGNMASK_DEVICE void pixel(int point, int level, F& x, F& y) const {
    const Int64 at = locations_ + (kPacked ? Int64{2} * point
                                           : level * params_.locations_strides[3] +
                                                 (point - level * params_.points) * params_.locations_strides[4]);
    F pair[2];
    if constexpr (kPacked) {
      load_pair<T>(params_.locations, at, params_.locations_wide, pair);
    } else {
      for (int i = 0; i < 2; ++i)
        pair[i] = load_either<T>(params_.locations, at + i * params_.locations_strides[5], params_.locations_wide);
    }
    const F width = static_cast<F>(params_.width[level]), height = static_cast<F>(params_.height[level]);
    if (params_.reference) {  // offsets are in pixels
      const Int64 from = at_.image * params_.reference_strides[0] + at_.query * params_.reference_strides[1] +
                         level * params_.reference_strides[2];
      x = pair[0] + pixel_position(load_either<T>(params_.reference, from, params_.reference_wide), width);
      y = pair[1] +
          pixel_position(load_either<T>(params_.reference, from + params_.reference_strides[3], params_.reference_wide),
                         height);
    } else {
      x = pixel_position(pair[0], width);
      y = pixel_position(pair[1], height);
    }
  }

  /// Attention weight of a point of a level.
  ALIGNMASK_DEVICE F weight(int point, int level) const {
    const F raw = read_weight(point, level);
    return params_.reference ? exponential(raw - largest_) * scale_ : raw;
  }

 private:
  ALIGNMASK_DEVICE F read_weight(int point, int level) const {
    const Int64 at = weights_ + (kPacked ? Int64{point}
                                         : level * params_.weights_strides[3] +
                                               (point - level * params_.points) * params_.weights_strides[4]);
    return load_either<T>(params_.weights, at, params_.weights_wide);
  }

  /// Every lane looks at its share of the logits, then they put it together.
  ALIGNMASK_DEVICE void find_softmax() {
    F largest = -infinity<F>();
    for (int point = lane_; point < count(); point += kLanes)
      largest = larger(largest, read_weight(point, level_of(point)));
    largest_ = reduce<kLanes>(largest, [](F a, F b) { return larger(a, b); });
    F sum = 0;
    for (int point = lane_; point < count(); point += kLanes)
      sum += exponential(read_weight(point, level_of(point)) - largest_);
    scale_ = 1 / reduce<kLanes>(sum, [](F a, F b) { return a + b; });
  }

  const MSDeformAttnParams& params_;
  const QueryHead& at_;
  int lane_;
  Int64 locations_, weights_;  // first element of this query and head
  F largest_ = 0, scale_ = 1;  // of the softmax
};

}  // namespace alignmask
