// Point sampling and masked average pooling in CUDA: the forward kernel.
#pragma once

#include "points.cuh"

namespace alignmask {

/// Writes pooled, and weight. A block owns an instance, a set and 32 · kVector channels. Its warps
/// take 32 points at a time: each lane samples the mask at one, a ballot says which hit it, and the
/// features are read at those alone, all lanes together, a vector of channels each. Sums stay in
/// registers; every result is written once, and the order of additions is always the same.
///
/// One instance, not all of an image's, because masks hardly overlap: a point that hits two is
/// sampled twice, but sums need not move through shared memory, and there are as many blocks as
/// instances, sets and channel tiles.
///
/// kVector > 1: channels lie together (channels last), aligned, and rows without gaps. kVector = 1:
/// any strides.
///
/// Four blocks on a multiprocessor, at most 64 registers: half of the threads that there can be,
/// each with the four loads of a point in flight.
template <class T, int kVector>
ALIGNMASK_KERNEL(kPoolThreads, sizeof(T) == 8 ? 2 : 4)
masked_point_pool_forward(ALIGNMASK_PARAMS MaskedPointPoolParams params) {
  using F = Arithmetic<T>;
  constexpr int kChannels = kWarp * kVector;
  ALIGNMASK_SHARED(BilinearTaps<F>, taps, kPoolThreads);
  ALIGNMASK_SHARED(F, sums, kPoolWarps * kChannels);
  ALIGNMASK_SHARED(F, weights, kPoolWarps);

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int block = static_cast<int>(blockIdx.x), slice = block / params.channel_blocks;
  const int instance = slice / params.sets, set = slice - instance * params.sets;
  const int first_channel = (block - slice * params.channel_blocks) * kChannels;
  const int image = image_of(params, instance);
  const int channel = first_channel + lane * kVector;
  const bool has_channels = channel < params.channels;
  const T* const features = static_cast<const T*>(params.features) +
                            larger(image, 0) * params.features_strides[0] +
                            channel * (kVector > 1 ? Int64{1} : params.features_strides[1]);
  BilinearTaps<F>* const mine = taps + warp * kWarp;

  F sum[kVector] = {}, weight = 0;
  const int count = image >= 0 ? params.points_per_set : 0;
  for (int first = warp * kWarp; first < count; first += kPoolThreads) {
    F x = 0, y = 0, hit = 0;
    if (first + lane < count) {
      read_point<T>(params, image, set, first + lane, x, y);
      hit = sample_mask_of(params, instance, point_on_masks(params, x, y));
    }
    weight += hit;
    const UInt32 covered = __ballot_sync(kFullWarp, hit != 0);
    if (!covered) continue;
    if (hit != 0) {
      BilinearTaps<F> found = feature_taps(params, x, y);
      for (int k = 0; k < 4; ++k) found.weight[k] *= hit;
      mine[__popc(covered & ((1u << lane) - 1))] = found;
    }
    __syncwarp();
    const int hits = __popc(covered);
#pragma unroll 1
    for (int i = 0; i < hits; ++i) {
      const BilinearTaps<F> point = mine[i];
      Packed<T, kVector> corner[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int pixel = has_channels ? point.indices.corner[k] : -1;
        corner[k] = load<T, kVector>(pixel_at<(kVector > 1)>(params, features, pixel), pixel);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        F number[kVector];
        corner[k].unpack_to(number);
#pragma unroll
        for (int j = 0; j < kVector; ++j) sum[j] += point.weight[k] * number[j];
      }
    }
    __syncwarp();  // no lane reads these points any more
  }

  weight = reduce<kWarp>(weight, [](F a, F b) { return a + b; });
  if (lane == 0) weights[warp] = weight;
#pragma unroll
  for (int j = 0; j < kVector; ++j) sums[warp * kChannels + lane * kVector + j] = sum[j];
  __syncthreads();
  weight = 0;
  for (int w = 0; w < kPoolWarps; ++w) weight += weights[w];
  const F divisor = params.divide_by_points ? static_cast<F>(params.points_per_set) : weight;
  const int c = static_cast<int>(threadIdx.x);
  if (c < kChannels && first_channel + c < params.channels) {
    F total = 0;
    for (int w = 0; w < kPoolWarps; ++w) total += sums[w * kChannels + c];
    from_arithmetic(
        weight == 0 ? F{0} : total / divisor,
        static_cast<T*>(
            params.pooled)[instance * params.pooled_strides[0] + set * params.pooled_strides[1] +
                           (first_channel + c) * params.pooled_strides[2]]);
  }
  if (threadIdx.x == 0 && first_channel == 0)
    static_cast<F*>(
        params.weight)[instance * params.weight_strides[0] + set * params.weight_strides[1]] =
        weight;
}

}  // namespace alignmask
