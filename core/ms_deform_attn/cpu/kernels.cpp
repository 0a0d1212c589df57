// The CPU kernels.
//
// Forward: the queries are divided among threads; each goes through all heads of a query before the
// next, so that the points, weights and the output stream by in the order in which they lie in
// memory. Values are sampled where they are, in half precision, too, if a token's channels lie
// together and fill whole vectors; else a few heads at a time are copied out.
//
// Backward: one task owns the gradient of one (image, head), and no two threads ever add to one
// place, so results do not depend on the number of threads. The head's values and their gradient
// lie packed in scratch memory meanwhile: tokens of one head side by side take an eighth (with 8
// heads) of the pages and cache lines that they take in the tensors.
//
// For each (query, head): its points as positions and weights (PointReader), planned into taps
// (TapPlanner), a pack of points at a time; then tap by tap over the channels, kWidth of them in
// registers.
#include <cstdlib>

#include "backward.h"
#include "common/cpu/dispatch.h"
#include "forward.h"

namespace alignmask::ALIGNMASK_ISA {

void ms_deform_attn_forward_cpu(const MSDeformAttnArgs& args);
void ms_deform_attn_backward_cpu(const MSDeformAttnArgs& args);

namespace {

constexpr std::int64_t kFarthestTokens = std::int64_t{1}
                                         << 31;  // bytes from one token to the next must be fewer

template <class F, int kWidth>
void forward(const MSDeformAttnArgs& args) {
  const TensorView& value = args.value;
  const bool together =
      value.shape[3] % kWidth == 0 && (value.strides[3] == 1 || value.shape[3] == 1);
  const bool near = std::abs(value.strides[1]) < kFarthestTokens / element_bytes(value.dtype);
  if (!together || !near) return Forward<F, F, kWidth>(args, false).run();
  if constexpr (sizeof(F) == 4) {
    if (value.dtype == DType::kFloat16) return Forward<F, Half, kWidth>(args, true).run();
    if (value.dtype == DType::kBFloat16) return Forward<F, BFloat16, kWidth>(args, true).run();
  }
  Forward<F, F, kWidth>(args, true).run();
}

template <class F, int kWidth>
void backward(const MSDeformAttnArgs& args) {
  Backward<F, kWidth>(args).run();
}

// Calls pass<F, kWidth>(args) with as many channels in registers as a head has, at most 64.
#define ALIGNMASK_FOR_CHANNELS(pass, F, args)          \
  do {                                                 \
    const std::int64_t channels = args.value.shape[3]; \
    if (channels <= 8) return pass<F, 8>(args);        \
    if (channels <= 16) return pass<F, 16>(args);      \
    if (channels <= 32) return pass<F, 32>(args);      \
    return pass<F, 64>(args);                          \
  } while (false)

}  // namespace

void ms_deform_attn_forward_cpu(const MSDeformAttnArgs& args) {
  if (args.value.dtype == DType::kFloat64) ALIGNMASK_FOR_CHANNELS(forward, double, args);
  ALIGNMASK_FOR_CHANNELS(forward, float, args);
}

void ms_deform_attn_backward_cpu(const MSDeformAttnArgs& args) {
  if (args.value.dtype == DType::kFloat64) ALIGNMASK_FOR_CHANNELS(backward, double, args);
  ALIGNMASK_FOR_CHANNELS(backward, float, args);
}

}  // namespace alignmask::ALIGNMASK_ISA
