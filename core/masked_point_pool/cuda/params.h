// Parameters of the CUDA kernels of masked_point_pool. Filled on the host, read on the device.
//
// B images, C channels, H x W features, G instances of h x w, T sets of K points.
#pragma once

#include "common/cuda/fast_divide.h"

namespace alignmask {

constexpr int kPoolThreads = 256;        // of a block
constexpr int kPoolInstances = 8;        // that the backward kernel samples at once
constexpr int kPoolChannelsPerLane = 4;  // in the backward kernel
// of a block that adds up gradients in order: one per lane
constexpr int kPoolOrderedChannels = 32;

/// Pixels that such a block owns: their sums take 16 KB of shared memory.
ALIGNMASK_HOST_DEVICE constexpr int pool_ordered_tile(int arithmetic_bytes) {
  return (16 << 10) / (kPoolOrderedChannels * arithmetic_bytes);
}

struct MaskedPointPoolParams {
  // Tensors as in MaskedPointPoolArgs; null: absent. Strides in elements.
  const void* features;     // [B, C, H, W]
  const void* masks;        // [G, h, w]
  const void* owner;        // [G]
  const void* points;       // [B, T, K, 2]
  void* pooled;             // [G, T, C]
  void* weight;             // [G, T], in the arithmetic type
  const void* grad_pooled;  // [G, T, C]
  void* grad_features;      // [B, C, H, W]
  long long features_strides[4], masks_strides[3], owner_stride, points_strides[4],
      pooled_strides[3],
      weight_strides[2];  // features and pooled: of their gradients, too
  int pixel_bytes;        // the stride of a pixel of features, where it fits (0 elsewhere)
  bool owner_wide;        // of 64 bits, not 32?
  bool points_wide;       // of the arithmetic type, not that of features?
  bool divide_by_points;

  void* sums;  // [B, H, W, C], in the arithmetic type, aligned to 16 bytes: where atomics add up
               // the gradient
  bool vector_sums;  // are the channels of every pixel aligned to four floats?

  int images, channels, height, width;
  int instances, mask_height, mask_width;
  int sets, points_per_set;
  int channel_blocks;
  int ordered_tiles;  // of an image, see ordered.cuh
  FastDivide by_width, by_points;
};

}  // namespace alignmask
