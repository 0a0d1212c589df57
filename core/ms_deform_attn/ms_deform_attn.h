// Multi-scale deformable attention.
//
//   out[b, q, n·D + d] = Σ_l Σ_p weights[b, q, n, l, p] · sample(value of level l, head n,
//                        channel d; locations[b, q, n, l, p])
//
// In the form with offsets, it gets reference points, raw offsets and logits, and computes
//
//   locations[b, q, n, l, p] = reference[b, q, l] + offsets[b, q, n, l, p] / size of level l
//   weights[b, q, n] = softmax of logits[b, q, n] over all levels and points
//
// sample: bilinear at (x, y) normalised to [0, 1] over the level, align_corners=False, zero
// outside. A NaN location samples NaN, an infinite one is outside; nothing is sampled from an empty
// level.
//
// B images, S tokens = Σ h·w, N heads, D channels per head, Q queries, L levels, P points.
#pragma once

#include <cstdint>
#include <vector>

#include "common/tensor_view.h"

namespace alignmask {

struct MSDeformAttnLevel {
  std::int64_t height, width;
};

struct MSDeformAttnArgs {
  /// What the caller gives: where to sample and with which weights, or what both are computed from.
  enum class Form { kLocations, kOffsets };

  /// What errors call the op, and the arguments whose meaning depends on the form.
  struct Names {
    const char *op, *locations, *weights, *grad_locations, *grad_weights;
  };
  const Names& names() const {
    static constexpr Names kNames[] = {
        {"ms_deform_attn", "locations", "weights", "grad_locations", "grad_weights"},
        {"ms_deform_attn_from_offsets", "offsets", "logits", "grad_offsets", "grad_logits"},
    };
    return kNames[static_cast<int>(form)];
  }
  const char* op() const { return names().op; }

  Form form = Form::kLocations;

  TensorView value;  ///< [B, S, N, D]          float16, bfloat16, float32 or float64; any strides,
                     ///< as all below
  TensorView locations;  ///< [B, Q, N, L, P, 2]    dtype of value, or float32 beside half precision
  TensorView weights;    ///< [B, Q, N, L, P]       dtype as for locations
  TensorView reference;  ///< [B, Q, L, 2]          dtype as for locations. Only in form kOffsets:
                         ///< `locations` then holds offsets, in pixels of their level, and
                         ///< `weights` holds logits
  std::vector<MSDeformAttnLevel> levels;  ///< level after level in S, rows before columns

  TensorView out;  ///< forward: [B, Q, N·D], dtype of value

  TensorView grad_out;  ///< backward, input: [B, Q, N·D], dtype of value

  // Backward, outputs: shape and dtype of what they are the gradient of. Absent if not needed; all
  // elements are written.
  TensorView grad_value;
  TensorView grad_locations;
  TensorView grad_weights;
  TensorView grad_reference;  ///< kOffsets only

  int threads = 1;         ///< CPU: at most this many threads; the result does not depend on it
  void* stream = nullptr;  ///< CUDA: the stream to work on

  bool deterministic = false;  ///< CUDA: backward adds in a fixed order (the CPU always does)
  TensorView workspace;  ///< CUDA, backward: uint8, as many as ms_deform_attn_backward_workspace()
                         ///< says, aligned to 16 bytes, in use until the stream has done the work
};

/// Throw TypeError or ValueError, before anything is written, unless the arguments fit together.
/// Outputs must not overlap inputs.
void ms_deform_attn_forward(const MSDeformAttnArgs& args);
void ms_deform_attn_backward(const MSDeformAttnArgs& args);

/// Bytes of workspace that ms_deform_attn_backward() needs for these arguments. Throws as that
/// does.
std::int64_t ms_deform_attn_backward_workspace(const MSDeformAttnArgs& args);

}  // namespace alignmask
