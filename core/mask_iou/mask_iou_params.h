// What the kernels of mask_iou are told. Filled on the host, read on the device.
//
// B images, Q predictions per image of h x w, G targets of H x W.
#pragma once

namespace alignmask {

constexpr int kIouThreads = 256;    // of a block
constexpr int kIouQueries = 8;      // of one image that a block counts together
constexpr int kIouTargets = 31;     // likewise: one per lane, and the last lane counts the predictions' own pixels
constexpr int kIouPackedRows = 64;  // of one target that a block packs
constexpr int kIouBandRows = 64;    // of targets that a block counts, about

struct MaskIouParams {
  // Tensors as in MaskIouArgs. Strides in elements.
  const void* predictions;  // [B, Q, h, w]
  const void* targets;      // [G, H, W]
  const void* owner;        // [G]
  void* iou;                // [G, Q], in the arithmetic type
  long long predictions_strides[4], targets_strides[3], owner_stride, iou_strides[2];
  bool owner_wide;  // of 64 bits, not 32?

  // Workspace.
  unsigned int* bits;                   // [G, H, row_words]: pixel x of a row is bit x % 32 of word x / 32
  unsigned long long* target_area;      // [G]
  unsigned long long* prediction_area;  // [B, Q]
  unsigned long long* both;             // [G, Q]: pixels in both

  int images, queries, height, width;
  int target_count, target_height, target_width, factor;  // factor = H / h
  int row_words;
  int band_rows, bands;  // rows of a prediction (upsampled: gaps between rows) that a block reads; how many such bands
  double threshold;
};

}  // namespace alignmask
