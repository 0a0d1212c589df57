// Point sampling and masked average pooling in CUDA: the gradient of features, by atomics.
#pragma once

#include "points.cuh"

namespace alignmask {

/// Do atomics add the four channels of a lane at once?
template <class F>
ALIGNMASK_DEVICE bool adds_vectors(const MaskedPointPoolParams& params) {
  return sizeof(F) == 4 && params.vector_sums && has_vector_atomics();
}

/// Channel j of a lane's four. Where atomics take vectors, these are neighbours; elsewhere, those
/// of neighbouring lanes are, so that one access reads or adds 32 of them together.
template <class F>
ALIGNMASK_DEVICE int pool_channel(const MaskedPointPoolParams& params, int lane, int j) {
  return adds_vectors<F>(params) ? lane * kPoolChannelsPerLane + j : lane + j * kWarp;
}

/// Adds to sums. A block owns 256 points of an image and a set, and 128 channels; a lane samples
/// the masks of up to eight instances at one point. A point that hits some gets one gradient, their
/// weighted sum, which goes to the pixels around it; points that hit none are skipped by ballot.
template <class T>
ALIGNMASK_KERNEL(kPoolThreads, sizeof(T) == 8 ? 2 : 4)
masked_point_pool_backward(ALIGNMASK_PARAMS MaskedPointPoolParams params) {
  using F = Arithmetic<T>;
  constexpr int kEach = kPoolChannelsPerLane;
  ALIGNMASK_SHARED(BilinearTaps<F>, taps, kPoolThreads);
  ALIGNMASK_SHARED(F, hits, kPoolInstances * kPoolThreads);
  ALIGNMASK_SHARED(int, found, kPoolInstances);
  ALIGNMASK_SHARED(F, scales, kPoolInstances);
  ALIGNMASK_SHARED(int, state, 2);  // how many instances were found, where to look for more

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int point_blocks = (params.points_per_set + kPoolThreads - 1) / kPoolThreads;
  const UInt32 of_points = blockIdx.x / params.channel_blocks, of_sets = of_points / point_blocks;
  const int first_channel =
      static_cast<int>(blockIdx.x - of_points * params.channel_blocks) * kWarp * kEach;
  const int image = static_cast<int>(of_sets / params.sets),
            set = static_cast<int>(of_sets % params.sets);
  const int k = static_cast<int>(of_points - of_sets * point_blocks) * kPoolThreads +
                static_cast<int>(threadIdx.x);

  F x = 0, y = 0;
  PointOnMap<F, int> on_masks = {-1, -1, 0, 0, false};
  if (k < params.points_per_set) {
    read_point<T>(params, image, set, k, x, y);
    on_masks = point_on_masks(params, x, y);
  }
  F* const sums = static_cast<F*>(params.sums) +
                  static_cast<Int64>(image) * params.height * params.width * params.channels +
                  first_channel;

  for (int from = 0; from >= 0;) {
    if (warp == 0) {
      const int next = find_instances<kPoolInstances>(params, image, from, found, state);
      __syncwarp();
      if (lane < state[0]) scales[lane] = gradient_scale<F>(params, found[lane], set);
      if (lane == 0) state[1] = next;
    }
    __syncthreads();
    const int count = state[0];
    from = state[1];

    bool covered = false;
    for (int m = 0; m < count; ++m) {
      const F hit = sample_mask_of(params, found[m], on_masks) * scales[m];
      hits[m * kPoolThreads + threadIdx.x] = hit;
      covered = covered || hit != 0;
    }
    if (covered) taps[threadIdx.x] = feature_taps(params, x, y);
    UInt32 left = __ballot_sync(kFullWarp, covered);
    __syncwarp();
    for (; left; left &= left - 1) {
      const int point = warp * kWarp + __ffs(static_cast<int>(left)) - 1;
      F gradient[kEach] = {};
      for (int m = 0; m < count; ++m) {
        const F hit = hits[m * kPoolThreads + point];
        if (hit == 0) continue;
        const T* const pooled = static_cast<const T*>(params.grad_pooled) +
                                found[m] * params.pooled_strides[0] +
                                set * params.pooled_strides[1];
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          const int channel = first_channel + pool_channel<F>(params, lane, j);
          if (channel < params.channels)
            gradient[j] += hit * to_arithmetic(pooled[channel * params.pooled_strides[2]]);
        }
      }
      const BilinearTaps<F>& tap = taps[point];
#pragma unroll 1
      for (int i = 0; i < 4; ++i) {
        if (tap.indices.corner[i] < 0) continue;
        F* const to = sums + static_cast<Int64>(tap.indices.corner[i]) * params.channels;
        const F weight = tap.weight[i];
        if constexpr (sizeof(F) == 4) {
          if (adds_vectors<F>(params)) {
            if (first_channel + lane * kEach < params.channels)
              atomic_add<4>(to + lane * kEach, {weight * gradient[0], weight * gradient[1],
                                                weight * gradient[2], weight * gradient[3]});
            continue;
          }
        }
#pragma unroll
        for (int j = 0; j < kEach; ++j)
          if (first_channel + lane + j * kWarp < params.channels)
            atomic_add(to + lane + j * kWarp, weight * gradient[j]);
      }
    }
    __syncthreads();  // all threads are done with these instances
  }
}

}  // namespace alignmask
