// Mask logits -> run lengths (COCO's RLE), area, box and mean probability of the masks at the
// image's size, without a mask of that size.
//
//   full = resize(resize(logits, padded)[:valid], size)      bilinear, align_corners=False
//   mask = full > 0                                          NaN is background
//
// A resize to the size that is there already is left out. The counts of a mask are the lengths of
// its runs down the columns, zeros first (0 of them, if the first pixel is set).
//
// How many counts there are depends on the logits, and nothing here allocates: so there are two
// calls. mask_rle_forward() measures the masks. Its caller adds up `runs` and makes room;
// mask_rle_counts_forward() then writes the counts.
//
// N masks, h x w logits, H x W pixels of the image, R counts of all masks.
#pragma once

#include "common/tensor_view.h"

namespace alignmask {

struct MaskRleArgs {
  static const char* op() { return "mask_rle"; }

  TensorView logits;  ///< [N, h, w]  float16, bfloat16, float32 or float64; any strides, as all
                      ///< below

  // Sides of 1 to 2^24; valid <= padded, and H · W < 2^31.
  int height = 0, width = 0;                ///< H, W
  int padded_height = 0, padded_width = 0;  ///< of the network's input
  int valid_height = 0, valid_width = 0;    ///< the part of it that shows the image

  // Outputs of mask_rle_forward().
  TensorView runs;         ///< [N, W]  int32: how many counts end in each column; the mask's last
                           ///< count belongs to the last column
  TensorView area;         ///< [N]     int64: set pixels
  TensorView box;          ///< [N, 4]  int64: x1, y1, x2, y2 with x2, y2 past the last pixel; zeros
                           ///< for an empty mask
  TensorView probability;  ///< [N]     mean sigmoid of `full` over the set pixels, 0 for an empty
                           ///< mask; float32, or float64 beside float64

  // Of mask_rle_counts_forward(), with the same logits.
  TensorView ends;    ///< [N, W]  int64: the running sum of `runs` over all masks
  TensorView counts;  ///< output: [R]  int32

  int threads = 1;         ///< at most this many CPU threads; the result does not depend on it
  void* stream = nullptr;  ///< CUDA: the stream to work on
  TensorView workspace;  ///< CUDA: uint8, as many as the functions below say, aligned to 16 bytes,
                         ///< in use until the stream has done the work
};

/// Throws TypeError or ValueError, before anything is written, unless the arguments fit together.
/// Outputs must not overlap each other or the logits.
void mask_rle_forward(const MaskRleArgs& args);

/// As above. On the CPU, ValueError also for `ends` that decrease or lead out of `counts`; on CUDA
/// nothing is written for such a column. With `ends` of other logits the counts mean nothing.
void mask_rle_counts_forward(const MaskRleArgs& args);

/// Bytes of workspace that the functions need for these arguments. Throw as they do.
std::int64_t mask_rle_forward_workspace(const MaskRleArgs& args);
std::int64_t mask_rle_counts_forward_workspace(const MaskRleArgs& args);

}  // namespace alignmask
