// Parameters of the CUDA kernels of mask_rle. Filled on the host, read on the device.
//
// N masks, h x w logits, H x W pixels of the image, R counts.
#pragma once

namespace alignmask {

constexpr int kRleThreads = 256;  // of a block; a warp has a column
constexpr int kRleWarps = kRleThreads / 32;

/// One axis of the resizing from logits to the padded map, and from its valid part to the image.
struct RleAxis {
  int logits, valid, size;
  double pad_scale, scale;  // source size / resized size, in the arithmetic type
  bool pad_same, same;      // nothing is resized
};

struct MaskRleParams {
  // Tensors as in MaskRleArgs. Strides in elements.
  const void* logits;
  int* runs;
  long long* area;
  long long* box;
  void* probability;
  const long long* ends;
  int* counts;
  long long logits_strides[3], runs_strides[2], area_stride, box_strides[2], probability_stride,
      ends_strides[2], counts_stride;

  // Workspace.
  double* sums;    // [N, W]: of the probabilities of a column's set pixels
  int* set;        // [N, W]: how many there are
  int* first_set;  // [N, W]: row of the first one, H if there is none
  int* past_set;   // [N, W]: row behind the last one, 0 if there is none
  int* changes;    // [R]: how many pixels of its mask lie before the end of a count

  RleAxis rows, columns;
  int masks;
  long long count_total;  // R
};

}  // namespace alignmask
