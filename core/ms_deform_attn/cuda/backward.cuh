// Multi-scale deformable attention in CUDA: the gradients of points, weights and reference points.
#pragma once

#include "points.cuh"

namespace alignmask {

/// The gradient of the output of one query and head, kLanes · kVector channels at a time.
template <class T, int kVector, int kLanes>
class OutGradient {
 public:
  using F = Arithmetic<T>;

  ALIGNMASK_DEVICE OutGradient(const MSDeformAttnParams& params, const QueryHead& at, int lane)
      : params_(params),
        gradient_(static_cast<const T*>(params.grad_out) + at.image * params.out_strides[0] +
                  at.query * params.out_strides[1] + at.head * params.out_strides[2]),
        lane_(lane) {
    load_channels(0);
  }

  ALIGNMASK_DEVICE void load_channels(int first) {
    count_ = params_.channels - first;
    const Int64 stride = kVector > 1 ? Int64{1} : params_.out_strides[3];
    own_ =
        load<T, kVector>(gradient_ + (first + lane_ * kVector) * stride, has_channels() ? 0 : -1);
  }

  /// This lane's part of <gradient, value> at each of the tokens; `value` is at this lane's first
  /// channel.
  ALIGNMASK_DEVICE Corners<F> dots(const T* value, const CornerIndices& tokens) const {
    Packed<T, kVector> corner[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int token = has_channels() ? tokens.corner[k] : -1;
      corner[k] = load<T, kVector>(token_at<(kVector > 1)>(params_, value, token), token);
    }
    F own[kVector], dot[4] = {0, 0, 0, 0};
    still_packed(own_).unpack_to(own);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      F number[kVector];
      corner[k].unpack_to(number);
#pragma unroll
      for (int j = 0; j < kVector; ++j) dot[k] += own[j] * number[j];
    }
    return {dot[0], dot[1], dot[2], dot[3]};
  }

 private:
  ALIGNMASK_DEVICE bool has_channels() const { return kVector > 1 || lane_ < count_; }

  const MSDeformAttnParams& params_;
  const T* gradient_;
  int lane_;
  int count_;  // of channels from the first one here on
  Packed<T, kVector> own_;
};

/// Sums over the lanes of a group for four points, one added after the other: point i's arrive in
/// lanes i, i + 4, ... Three shuffles per point and number for eight lanes would be needed
/// otherwise; here it is one and a half.
template <class F, int kLanes>
class ScatteredSums {
 public:
  ALIGNMASK_DEVICE void add(int i, PointGradient<F> x) {
    if (i & 1) {
      x = exchange(one_, x, 1);
      if (i & 2) {
        two_ = exchange(two_, x, 2);
      } else {
        two_ = x;
      }
    } else {
      one_ = x;
    }
  }

  ALIGNMASK_DEVICE PointGradient<F> finish() const {
    PointGradient<F> sum = two_;
    for (int step = 4; step < kLanes; step *= 2) {
      sum.location_x += __shfl_xor_sync(kFullWarp, sum.location_x, step);
      sum.location_y += __shfl_xor_sync(kFullWarp, sum.location_y, step);
      sum.weight += __shfl_xor_sync(kFullWarp, sum.weight, step);
    }
    return sum;
  }

 private:
  /// Lanes with the bit `step` unset go on with `a`, the others with `b`, each together with the
  /// other half's part.
  ALIGNMASK_DEVICE static F exchange(F a, F b, int step) {
    const bool second = threadIdx.x & step;
    return (second ? b : a) + __shfl_xor_sync(kFullWarp, second ? a : b, step);
  }
  ALIGNMASK_DEVICE static PointGradient<F> exchange(const PointGradient<F>& a,
                                                    const PointGradient<F>& b, int step) {
    return {exchange(a.location_x, b.location_x, step), exchange(a.location_y, b.location_y, step),
            exchange(a.weight, b.weight, step)};
  }

  PointGradient<F> one_ = {}, two_ = {};  // of one point, of two
};

/// Writes the gradients of locations (or offsets) and of weights (or logits), each only if it is
/// wanted, and the softmax if another kernel needs it. Lanes and channels as in the forward kernel.
///
/// A point's three numbers are sums over channels: every lane adds up its own, and the group puts
/// those of four points together at once by shuffles, which leaves point i's sums in lane i.
template <class T, int kVector, int kLanes>
ALIGNMASK_KERNEL(kAttentionThreads, sizeof(T) == 8 ? 2 : 4)
ms_deform_attn_backward(ALIGNMASK_PARAMS MSDeformAttnParams params) {
  using F = Arithmetic<T>;
  constexpr int kGroups = kAttentionThreads / kLanes;
  constexpr int kBatch = 4;
  using Rows = PointRows<kLanes, kLanes>;
  static_assert(kLanes >= kBatch, "a lane per point of a batch");
  ALIGNMASK_SHARED(PlacedPoint<F>, placed, Rows::kEntries);
  ALIGNMASK_SHARED(HeadState<F>, states, kGroups);

  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const HeadPoints<T, kLanes, (kVector > 1)> points(
      params, static_cast<Int64>(blockIdx.x) * kGroups + group, states[group], lane);
  const QueryHead& at = states[group].at;
  if (!params.grad_locations && !params.pixel_gradient && !params.grad_weights) return;

  const T* const value = static_cast<const T*>(params.value) + at.image * params.value_strides[0] +
                         at.head * params.value_strides[2] +
                         lane * (kVector > 1 ? Int64{kVector} : params.value_strides[3]);
  OutGradient<T, kVector, kLanes> gradient(params, at, lane);
  PlacedPoint<F>* const row = placed + Rows::first(group);

  const bool has_softmax = params.reference && params.grad_weights;
  F mean = 0;  // of the weights' gradients, by weight; this lane's part of it
  for (int first_point = 0; first_point < points.count(); first_point += kLanes) {
    __syncwarp();  // no lane reads the previous chunk any more
    row[lane] = points.place(first_point + lane);
    __syncwarp();
    const int count = smaller(kLanes, points.count() - first_point);
#pragma unroll 1
    for (int batch = 0; batch < count; batch += kBatch) {
      ScatteredSums<F, kLanes> sums;
#pragma unroll 1
      for (int i = 0; i < kBatch; ++i) {
        const PlacedPoint<F> point = row[batch + i];
        Corners<F> dots = gradient.dots(value, point.tokens);
        if constexpr (kVector == 1) {
          for (int first = kLanes; first < params.channels; first += kLanes) {
            gradient.load_channels(first);
            dots = dots + gradient.dots(value + first * params.value_strides[3], point.tokens);
          }
          if (params.channels > kLanes) gradient.load_channels(0);
        }
        sums.add(i, point_gradient(dots, point.x, point.y, point.weight, F{1}, F{1}));
      }
      const PointGradient<F> sum = sums.finish();
      __syncwarp();  // no lane reads these points any more: their gradients take their place
      if (lane < kBatch) {
        row[batch + lane].x = sum.location_x;
        row[batch + lane].y = sum.location_y;
        row[batch + lane].weight_gradient = sum.weight;
      }
    }
    __syncwarp();
    const int point = first_point + lane;
    if (point < points.count() && at.exists) {
      points.write_location_gradient(point, row[lane].x, row[lane].y);
      if (has_softmax) {
        points.kept_gradient(point) = row[lane].weight_gradient;
        mean += row[lane].weight * row[lane].weight_gradient;
      } else {
        points.write_weight_gradient(point, row[lane].weight_gradient);
      }
    }
  }
  if (!has_softmax) return;
  mean = reduce<kLanes>(mean, [](F a, F b) { return a + b; });
  if (!at.exists) return;
  for (int point = lane; point < points.count(); point += kLanes)
    points.write_logit_gradient(point, points.kept_gradient(point) - mean);
}

/// Writes the gradient of reference points: that of the offsets in pixels, summed over heads and
/// points in order. One thread per coordinate.
template <class T>
ALIGNMASK_KERNEL(kAttentionThreads, 4)
ms_deform_attn_reference_gradient(ALIGNMASK_PARAMS MSDeformAttnParams params) {
  using F = Arithmetic<T>;
  const Int64 index = static_cast<Int64>(blockIdx.x) * kAttentionThreads + threadIdx.x;
  const int coordinate = static_cast<int>(index % 2),
            level = static_cast<int>(index / 2 % params.levels);
  const Int64 image_query = index / 2 / params.levels;
  const int query = static_cast<int>(image_query % params.queries);
  const Int64 image = image_query / params.queries;
  if (image >= params.images) return;
  const long long* const strides = params.pixel_gradient_strides;
  const F* const from = static_cast<const F*>(params.pixel_gradient) + image * strides[0] +
                        query * strides[1] + level * strides[3] + coordinate * strides[5];
  F sum = 0;
  for (int head = 0; head < params.heads; ++head)
    for (int point = 0; point < params.points; ++point)
      sum += from[head * strides[2] + point * strides[4]];
  store_either<T>(
      sum * static_cast<F>(coordinate ? params.height[level] : params.width[level]),
      params.grad_reference,
      image * params.grad_reference_strides[0] + query * params.grad_reference_strides[1] +
          level * params.grad_reference_strides[2] + coordinate * params.grad_reference_strides[3],
      params.reference_wide);
}

}  // namespace alignmask
