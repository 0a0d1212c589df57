// Where the sampling points of a query and head fall, shared by the forward and the backward
// kernels.
//
// A group of kLanes lanes of a warp works on one (image, head, query). Its points are taken kChunk
// at a time: every lane computes one of them and leaves it in shared memory, then all lanes go
// through the chunk together. So a location is read and a level's geometry is computed once per
// query and head, not once per channel.
#pragma once

#include "common/cuda/bilinear_taps.cuh"
#include "common/cuda/vector.cuh"
#include "common/cuda/warp.cuh"
#include "ms_deform_attn/formula.h"
#include "params.h"

namespace alignmask {

using namespace ALIGNMASK_ISA;

/// Which (image, head, query) a group works on. Consecutive groups take consecutive queries of one
/// head: neighbours in the image read the same values, which then come from the cache of the
/// multiprocessor.
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
  return {image, slice - image * params.heads,
          static_cast<int>(index - static_cast<Int64>(slice) * params.queries), exists};
}

/// A point as the lanes need it. NaN coordinates stay NaN, and have no tokens.
template <class F>
struct alignas(16) PlacedPoint {
  CornerIndices tokens;
  F x, y;  ///< past the top left token
  F weight;
  F weight_gradient;
};

/// (x, y): pixels of a level, pixel centres at whole numbers.
template <class F>
ALIGNMASK_DEVICE PlacedPoint<F> place_point(const MSDeformAttnParams& params, int level, F x, F y,
                                            F weight) {
  const int height = params.height[level], width = params.width[level];
  const bool inside = x >= -1 && x < static_cast<F>(width) && y >= -1 && y < static_cast<F>(height);
  const F low_x = inside ? floor_of(x) : 0, low_y = inside ? floor_of(y) : 0;
  const int left = static_cast<int>(low_x), top = static_cast<int>(low_y);
  PlacedPoint<F> point;
  point.tokens = corner_indices(inside, left, top, width, height, params.first_token[level]);
  point.x = inside || x != x ? x - low_x : 0;  // infinity is outside, and must not meet a zero
  point.y = inside || y != y ? y - low_y : 0;
  point.weight = weight;
  point.weight_gradient = 0;
  return point;
}

/// The rows of shared memory that the groups of a block keep points in, kChunk entries of 32 bytes
/// each. The groups of a warp read theirs at once: an entry is left free now and then, so that they
/// are spread over all banks.
template <int kLanes, int kChunk>
struct PointRows {
  static constexpr int kGroups = kAttentionThreads / kLanes;
  // four entries fill the banks once
  static constexpr int kGroupsPerGap = kLanes < 8 ? 8 / kLanes : 1;
  static constexpr int kEntries = kGroups * kChunk + kGroups / kGroupsPerGap;

  ALIGNMASK_DEVICE static int first(int group) { return group * kChunk + group / kGroupsPerGap; }
};

/// `channel` of token 0 -> of `token`. kPacked: with the stride in 32 bits.
template <bool kPacked, class T>
ALIGNMASK_DEVICE const T* token_at(const MSDeformAttnParams& params, const T* channel, int token) {
  if constexpr (kPacked) return advance(channel, token, params.value_token_bytes);
  return channel + token * params.value_strides[1];
}

/// Per-group state of one (image, head, query), in shared memory. It is read a few times per chunk;
/// in registers it would reduce the number of loads in flight.
template <class F>
struct HeadState {
  QueryHead at;
  Int64 locations, weights, reference;  ///< where those of this query and head begin
  /// of the softmax: the largest logit, and 1 / sum of exponentials relative to it
  F largest, scale;
};

/// Points of one (image, head, query): their places, weights and gradients. kPacked: L, P and the
/// coordinates lie together. kLanes: in a group that works on them together; all of them call the
/// constructor.
template <class T, int kLanes, bool kPacked>
class HeadPoints {
 public:
  using F = Arithmetic<T>;

  /// `index`: of the group. `state`: the group's own.
  ALIGNMASK_DEVICE HeadPoints(const MSDeformAttnParams& params, Int64 index, HeadState<F>& state,
                              int lane)
      : params_(params),
        state_(state) {
    if (lane == 0) begin_at(query_head(params, index));
    __syncwarp();
    if (!params.reference) return;
    find_softmax(lane);
    __syncwarp();
    if (params.softmax && lane == 0 && state.at.exists) {
      F* const to = static_cast<F*>(params.softmax) + 2 * softmax_row();
      to[0] = state.largest;
      to[1] = state.scale;
    }
  }

  /// For single threads, which cannot compute the softmax of a query: the constructor above has
  /// written it before.
  ALIGNMASK_DEVICE HeadPoints(const MSDeformAttnParams& params, const QueryHead& at,
                              HeadState<F>& state)
      : params_(params),
        state_(state) {
    begin_at(at);
    if (!params.reference) return;
    const F* const found = static_cast<const F*>(params.softmax) + 2 * softmax_row();
    state.largest = found[0];
    state.scale = found[1];
  }

  ALIGNMASK_DEVICE int count() const { return params_.levels * params_.points; }

  ALIGNMASK_DEVICE int level_of(int point) const { return params_.by_points.quotient(point); }

  /// Location of a point of a level, in pixels.
  ALIGNMASK_DEVICE void pixel(int point, int level, F& x, F& y) const {
    const Int64 at = state_.locations + (kPacked ? Int64{2} * point
                                                 : level * params_.locations_strides[3] +
                                                       (point - level * params_.points) *
                                                           params_.locations_strides[4]);
    F pair[2];
    if constexpr (kPacked) {
      load_pair<T>(params_.locations, at, params_.locations_wide, pair);
    } else {
      for (int i = 0; i < 2; ++i)
        pair[i] = load_either<T>(params_.locations, at + i * params_.locations_strides[5],
                                 params_.locations_wide);
    }
    const F width = static_cast<F>(params_.width[level]),
            height = static_cast<F>(params_.height[level]);
    if (params_.reference) {  // offsets are in pixels
      const Int64 from = state_.reference + level * params_.reference_strides[2];
      x = pair[0] +
          pixel_position(load_either<T>(params_.reference, from, params_.reference_wide), width);
      y = pair[1] +
          pixel_position(load_either<T>(params_.reference, from + params_.reference_strides[3],
                                        params_.reference_wide),
                         height);
    } else {
      x = pixel_position(pair[0], width);
      y = pixel_position(pair[1], height);
    }
  }

  /// (x, y): gradient of the location in pixels. Offsets are in pixels, locations in parts of the
  /// level.
  ALIGNMASK_DEVICE void write_location_gradient(int point, F x, F y) const {
    if (params_.pixel_gradient)
      write_pair(x, y, params_.pixel_gradient, params_.pixel_gradient_strides, point, true);
    if (!params_.grad_locations) return;
    if (!params_.reference) {
      x *= static_cast<F>(params_.width[level_of(point)]);
      y *= static_cast<F>(params_.height[level_of(point)]);
    }
    write_pair(x, y, params_.grad_locations, params_.grad_locations_strides, point,
               params_.locations_wide);
  }

  ALIGNMASK_DEVICE void write_weight_gradient(int point, F gradient) const {
    if (!params_.grad_weights) return;
    store_either<T>(gradient, params_.grad_weights, element(params_.grad_weights_strides, point),
                    params_.weights_wide);
  }

  /// Keeps the gradient of a point's weight until that of its logit can be computed, by the same
  /// thread.
  ALIGNMASK_DEVICE F& kept_gradient(int point) const {
    return static_cast<F*>(params_.kept_gradients)[element(params_.kept_strides, point)];
  }

  /// `distance`: from the mean of the weights' gradients, which the softmax takes away.
  ALIGNMASK_DEVICE void write_logit_gradient(int point, F distance) const {
    write_weight_gradient(point, weight(point, level_of(point)) * distance);
  }

  /// A point's place and weight. Behind the last point, and in an empty level: no tokens, and
  /// weight 0.
  ALIGNMASK_DEVICE PlacedPoint<F> place(int point) const {
    if (point < count()) {
      const int level = level_of(point);
      if (params_.height[level] > 0 && params_.width[level] > 0) {
        F x, y;
        pixel(point, level, x, y);
        return place_point(params_, level, x, y, weight(point, level));
      }
    }
    return {{{-1, -1, -1, -1}}, 0, 0, 0, 0};
  }

  /// Attention weight of a point of a level.
  ALIGNMASK_DEVICE F weight(int point, int level) const {
    const F raw = read_weight(point, level);
    return params_.reference ? exponential(raw - state_.largest) * state_.scale : raw;
  }

 private:
  ALIGNMASK_DEVICE void begin_at(const QueryHead& at) {
    state_.at = at;
    state_.locations = first_of_head(params_.locations_strides);
    state_.weights = first_of_head(params_.weights_strides);
    state_.reference =
        at.image * params_.reference_strides[0] + at.query * params_.reference_strides[1];
  }

  ALIGNMASK_DEVICE Int64 first_of_head(const long long* strides) const {
    return state_.at.image * strides[0] + state_.at.query * strides[1] +
           state_.at.head * strides[2];
  }

  ALIGNMASK_DEVICE Int64 element(const long long* strides, int point) const {
    const int level = level_of(point);
    return first_of_head(strides) + level * strides[3] +
           (point - level * params_.points) * strides[4];
  }

  ALIGNMASK_DEVICE void write_pair(F x, F y, void* tensor, const long long* strides, int point,
                                   bool wide) const {
    const Int64 at = element(strides, point);
    store_either<T>(x, tensor, at, wide);
    store_either<T>(y, tensor, at + strides[5], wide);
  }

  ALIGNMASK_DEVICE F read_weight(int point, int level) const {
    const Int64 at = state_.weights +
                     (kPacked ? Int64{point}
                              : level * params_.weights_strides[3] +
                                    (point - level * params_.points) * params_.weights_strides[4]);
    return load_either<T>(params_.weights, at, params_.weights_wide);
  }

  /// Every lane reads its share of the logits, then the lanes combine their results.
  ALIGNMASK_DEVICE void find_softmax(int lane) {
    F largest = -infinity<F>();
#pragma unroll 1
    for (int point = lane; point < count(); point += kLanes)
      largest = larger(largest, read_weight(point, level_of(point)));
    largest = reduce<kLanes>(largest, [](F a, F b) { return larger(a, b); });
    F sum = 0;
#pragma unroll 1
    for (int point = lane; point < count(); point += kLanes)
      sum += exponential(read_weight(point, level_of(point)) - largest);
    sum = reduce<kLanes>(sum, [](F a, F b) { return a + b; });
    if (lane == 0) {
      state_.largest = largest;
      state_.scale = 1 / sum;
    }
  }

  ALIGNMASK_DEVICE Int64 softmax_row() const {
    return (static_cast<Int64>(state_.at.image) * params_.heads + state_.at.head) *
               params_.queries +
           state_.at.query;
  }

  const MSDeformAttnParams& params_;
  HeadState<F>& state_;
};

}  // namespace alignmask
