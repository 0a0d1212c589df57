// Parameters of the CUDA kernels of mask_iou. Filled on the host, read on the device.
//
// B images, Q predictions per image of h x w, G targets of H x W.
#pragma once

namespace alignmask {

constexpr int kIouThreads = 256;  // of a block
constexpr int kIouWarps = kIouThreads / 32;
constexpr int kIouQueries = 8;  // of one image that a block counts together
// of one image that a block counts together: one per lane, and lane 0 counts the predictions' own
// pixels
constexpr int kIouTargets = 31;
constexpr int kIouPackedRows = 64;  // of one target that a block packs
constexpr int kIouBandRows = 64;    // of targets that a block counts, about

// Counting by cells:
constexpr int kIouCellFactor = 4;    // of upsampling
constexpr int kIouCellPlanes = 5;    // binary digits of a cell's number of pixels
constexpr int kIouPlaneWords = 8;    // in memory, so that they can be read 16 bytes at a time
constexpr int kIouCellQueries = 16;  // of one image that a warp classifies together: two lanes each
constexpr int kIouCellSums = 33;  // one per lane, and one so that neighbours are in different banks
constexpr int kIouCellsOfWord = 31;  // between the 32 columns of a warp
constexpr int kIouCellRows = 8;      // through which a warp walks
// that a warp notes: a row's and what was left
constexpr int kIouMixedCells = kIouCellQueries * kIouCellsOfWord + 32;

struct MaskIouParams {
  // Tensors as in MaskIouArgs. Strides in elements.
  const void* predictions;  // [B, Q, h, w]
  const void* targets;      // [G, H, W]
  const void* owner;        // [G]
  void* iou;                // [G, Q], in the arithmetic type
  long long predictions_strides[4], targets_strides[3], owner_stride, iou_strides[2];
  bool owner_wide;  // of 64 bits, not 32?

  // Workspace.
  unsigned int* bits;    // [G, H, row_words]: pixel x of a row is bit x % 32 of word x / 32
  unsigned int* planes;  // by cells, instead of bits, as is the next; see cells.cuh
  unsigned short* pixels;
  unsigned long long* target_area;      // [G]
  unsigned long long* prediction_area;  // [B, Q]
  unsigned long long* both;             // [G, Q]: pixels in both

  int images, queries, height, width;
  int target_count, target_height, target_width, factor;  // factor = H / h
  int row_words;
  int band_rows, bands;  // rows of a prediction (upsampled: gaps between rows) that a block reads;
                         // how many such bands
  int strips;  // by cells: how many bands of a word's width there are; a warp reads one, a band is
               // kIouWarps
  double threshold;
};

}  // namespace alignmask
