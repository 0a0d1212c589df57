// Gradients of sampled logits in CUDA: by atomics, or with a fixed order of additions.
#pragma once

#include "points.cuh"

namespace alignmask {

template <class T>
ALIGNMASK_DEVICE Arithmetic<T> read_gradient(const MaskPointsParams& params, int row, int k) {
  return to_arithmetic(static_cast<const T*>(
      params.grad_sampled)[row * params.sampled_strides[0] + k * params.sampled_strides[1]]);
}

/// Adds to sums; a thread has a point.
template <class T>
ALIGNMASK_KERNEL(kPointGradientThreads, 8)
mask_points_backward(ALIGNMASK_PARAMS MaskPointsParams params) {
  using F = Arithmetic<T>;
  const int row = static_cast<int>(blockIdx.x / params.point_blocks);
  const int k = static_cast<int>(blockIdx.x % params.point_blocks) * kPointGradientThreads +
                static_cast<int>(threadIdx.x);
  if (k >= params.points_per_row) return;
  const BilinearTaps<F> taps = logit_taps(params, read_point<F>(params, row, k));
  const F gradient = read_gradient<T>(params, row, k);
  F* const sums = static_cast<F*>(params.sums) + Int64{row} * params.height * params.width;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (taps.indices.corner[i] >= 0)
      atomic_add(sums + taps.indices.corner[i], taps.weight[i] * gradient);
}

/// Writes the gradient of logits, without atomics: a block owns some pixels of a row, a thread
/// each, looks through all points of the row, and adds up those that reach its pixels, in their
/// order.
template <class T>
ALIGNMASK_KERNEL(kPointOrderedTile, sizeof(T) == 8 ? 4 : 8)
mask_points_ordered_backward(ALIGNMASK_PARAMS MaskPointsParams params) {
  using F = Arithmetic<T>;
  constexpr int kWarps = kPointOrderedTile / kWarp;
  ALIGNMASK_SHARED(BilinearTaps<F>, queue, kPointOrderedTile);  // weights times gradient
  ALIGNMASK_SHARED(int, hits, kWarps);

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int row = static_cast<int>(blockIdx.x / params.ordered_tiles);
  const int first_pixel = static_cast<int>(blockIdx.x % params.ordered_tiles) * kPointOrderedTile;
  const int pixel = first_pixel + static_cast<int>(threadIdx.x);
  F sum = 0;
  for (int first = 0; first < params.points_per_row; first += kPointOrderedTile) {
    const int k = first + static_cast<int>(threadIdx.x);
    BilinearTaps<F> taps = {};
    bool hit = false;
    if (k < params.points_per_row) {
      taps = logit_taps(params, read_point<F>(params, row, k));
      for (int i = 0; i < 4; ++i)
        hit = hit || (taps.indices.corner[i] >= first_pixel &&
                      taps.indices.corner[i] < first_pixel + kPointOrderedTile);
    }
    const UInt32 ballot = __ballot_sync(kFullWarp, hit);
    if (lane == 0) hits[warp] = __popc(ballot);
    __syncthreads();
    int position = __popc(ballot & ((1u << lane) - 1)), queued = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) position += hits[w];
      queued += hits[w];
    }
    if (hit) {
      const F gradient = read_gradient<T>(params, row, k);
      for (int i = 0; i < 4; ++i) taps.weight[i] *= gradient;
      queue[position] = taps;
    }
    __syncthreads();
    for (int i = 0; i < queued; ++i)
      for (int corner = 0; corner < 4; ++corner)
        if (queue[i].indices.corner[corner] == pixel) sum += queue[i].weight[corner];
    __syncthreads();  // the queue has been read
  }
  if (pixel >= params.height * params.width) return;
  const int y = pixel / params.width, x = pixel - y * params.width;
  from_arithmetic(
      sum, static_cast<T*>(
               params.grad_logits)[row * params.logits_strides[0] + y * params.logits_strides[1] +
                                   x * params.logits_strides[2]]);
}

}  // namespace alignmask
