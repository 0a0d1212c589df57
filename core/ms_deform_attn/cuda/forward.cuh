// Multi-scale deformable attention in CUDA: the forward kernel.
#pragma once

#include "points.cuh"

namespace alignmask {

/// Writes out. A group of kLanes lanes serves one (image, head, query).
///
/// kVector > 1: each lane has kVector channels, which make up all channels; they lie together and
/// are aligned in value and out, and so do the points of a query and head. kVector = 1: any number
/// of channels (in several rounds if there are more than lanes), any strides.
///
/// The launch bounds ask for four blocks of 256 threads per multiprocessor, half of what it can
/// hold, so a thread has at most 64 registers. With four channels per lane they ask for five
/// blocks. Each lane then has the four loads of a point in flight. With kVector > 1 they are
/// together 64 KB or more, which is several times what hides the latency of the L2 cache. More
/// loads per lane would cost threads.
template <class T, int kVector, int kLanes>
ALIGNMASK_KERNEL(kAttentionThreads, kVector == 4 ? 5 : 4)
ms_deform_attn_forward(ALIGNMASK_PARAMS MSDeformAttnParams params) {
  using F = Arithmetic<T>;
  constexpr int kGroups = kAttentionThreads / kLanes;
  constexpr int kChunk = kLanes < 4 ? 4 : kLanes;
  using Rows = PointRows<kLanes, kChunk>;
  using Tap = BilinearTaps<F>;
  ALIGNMASK_SHARED(Tap, taps, Rows::kEntries);
  ALIGNMASK_SHARED(HeadState<F>, states, kGroups);

  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const HeadPoints<T, kLanes, (kVector > 1)> points(
      params, static_cast<Int64>(blockIdx.x) * kGroups + group, states[group], lane);
  const QueryHead& at = states[group].at;
  const T* value = static_cast<const T*>(params.value) + at.image * params.value_strides[0] +
                   at.head * params.value_strides[2];
  Tap* const row = taps + Rows::first(group);

  for (int first_channel = 0; first_channel < params.channels; first_channel += kLanes * kVector) {
    const int channel = first_channel + lane * kVector;
    const bool has_channels = kVector > 1 || channel < params.channels;
    const T* const mine = value + channel * (kVector > 1 ? Int64{1} : params.value_strides[3]);
    F sum[kVector] = {};
    for (int first_point = 0; first_point < points.count(); first_point += kChunk) {
      __syncwarp();  // no lane reads the previous chunk any more
      for (int i = lane; i < kChunk; i += kLanes) {
        const PlacedPoint<F> point = points.place(first_point + i);
        row[i] = bilinear_taps(point.tokens, attention_tap_weights(point.x, point.y, point.weight));
      }
      __syncwarp();
      const int count = smaller(kChunk, points.count() - first_point);
#pragma unroll 1
      for (int i = 0; i < count; ++i) {
        const Tap tap = row[i];
        Packed<T, kVector> corner[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int token = has_channels ? tap.indices.corner[k] : -1;
          corner[k] = load<T, kVector>(token_at<(kVector > 1)>(params, mine, token), token);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          F number[kVector];
          corner[k].unpack_to(number);
#pragma unroll
          for (int j = 0; j < kVector; ++j) sum[j] += tap.weight[k] * number[j];
        }
      }
    }
    if (at.exists && has_channels) {
      T* const out = static_cast<T*>(params.out) + at.image * params.out_strides[0] +
                     at.query * params.out_strides[1] + at.head * params.out_strides[2];
      store<T, kVector>(sum, out + channel * (kVector > 1 ? Int64{1} : params.out_strides[3]));
    }
  }
}

}  // namespace alignmask
