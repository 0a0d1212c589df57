// Parameters of the CUDA kernels of mask_points. Filled on the host, read on the device.
//
// R rows of H x W logits, G masks of h x w, K points, M candidates.
#pragma once

namespace alignmask {

constexpr int kPointThreads = 512;          // of a block that chooses and samples a row's points
constexpr int kPointGradientThreads = 256;  // of a block that adds up gradients
constexpr int kPointOrderedTile = 256;      // pixels of such a block, where the order is fixed

struct MaskPointsParams {
  // Tensors as in MaskPointsArgs; null: absent. Strides in elements.
  const void* logits;        // [R, H, W]
  const void* masks;         // [G, h, w]
  const void* index;         // [R]
  void* points;              // [R, K, 2], in the arithmetic type
  void* sampled;             // [R, K]
  void* targets;             // [R, K], in the arithmetic type
  const void* grad_sampled;  // [R, K]
  void* grad_logits;         // [R, H, W]
  long long logits_strides[3], masks_strides[3], index_stride, points_strides[3],
      sampled_strides[2], targets_strides[2];  // logits and sampled: of their gradients, too
  bool index_wide;                             // of 64 bits, not 32?

  void* sums;  // [R, H, W], in the arithmetic type: where atomics add up the gradient

  long long seed;
  int rows, height, width, masks_count, mask_height, mask_width;
  int points_per_row, candidates, kept;
  int point_blocks;   // of a row, see backward.cuh
  int ordered_tiles;  // of a row
};

}  // namespace alignmask
