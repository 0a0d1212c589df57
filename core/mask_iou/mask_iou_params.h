// What the kernels of mask_iou are told. Filled on the host, read on the device.
//
// B images, Q predictions per image of h x w, G targets of H x W.
#pragma once

namespace alignmask {

constexpr int kIouThreads = 256;  // of a block
constexpr int kIouWarps = kIouThreads / 32;
constexpr int kIouQueries = 8;      // of one image that a block counts together
constexpr int kIouTargets = 31;     // likewise: one per lane, and the last lane counts the predictions' own pixels
constexpr int kIouPackedRows = 64;  // of one target that a block packs
constexpr int kIouBandRows = 64;    // of targets that a block counts, about

// Counting by cells:
constexpr int kIouCellFactor = 4;    // of upsampling
constexpr int kIouCellPixels = 16;   // of a cell
constexpr int kIouCellPlanes = 5;    // binary digits of a number of pixels of a cell
constexpr int kIouPlaneWords = 8;    // in memory, so that planes of a word can be read 16 bytes at a time
constexpr int kIouCellQueries = 16;  // of one image that a warp classifies together: half a lane each
constexpr int kIouCellsOfWord = 31;  // between the 32 columns of a warp
constexpr int kIouCellRows = 8;      // through which a warp walks, about

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
  unsigned int *planes, *pixels;        // by cells, instead of bits; see mask_iou_cells.cuh
  unsigned long long* target_area;      // [G]
  unsigned long long* prediction_area;  // [B, Q]
  unsigned long long* both;             // [G, Q]: pixels in both

  int images, queries, height, width;
  int target_count, target_height, target_width, factor;  // factor = H / h
  int row_words;
  int band_rows, bands;  // rows of a prediction (upsampled: gaps between rows) that a block reads; how many such bands
  int strips;            // by cells: how many bands of a word's width there are; a warp reads one, a band is kIouWarps
  double threshold;
};

}  // namespace alignmask
