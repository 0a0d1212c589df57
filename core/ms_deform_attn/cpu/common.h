// What both CPU passes need: sizes, rows of channels, tables.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/cpu/channels.h"
#include "common/cpu/parallel_for.h"
#include "common/cpu/strided_copy.h"
#include "taps.h"

namespace alignmask::ALIGNMASK_ISA {
namespace {

// multiply-adds below which another thread does not pay
constexpr std::int64_t kWorkPerThread = 100'000;

/// Sizes of a call; channels are worked on in blocks of kWidth.
template <int kWidth>
struct Sizes {
  explicit Sizes(const MSDeformAttnArgs& args)
      : B(args.value.shape[0]),
        S(args.value.shape[1]),
        N(args.value.shape[2]),
        D(args.value.shape[3]),
        Q(args.weights.shape[1]),
        padded_D((D + kWidth - 1) / kWidth * kWidth),
        work(4.0 * padded_D * B * N * Q * args.weights.shape[3] * args.weights.shape[4]) {}
  std::int64_t B, S, N, D, Q, padded_D;
  double work;  // no integer: it would overflow
};

/// Channels of heads inside the rows of out or grad_out, [B, Q, N·D].
template <class F>
class ChannelRows {
 public:
  ChannelRows(const TensorView& tensor, std::int64_t D, std::int64_t padded_D)
      : tensor_(tensor),
        D_(D),
        together_(together(tensor, 2)),
        direct_(contiguous<F>(tensor, 2) && D == padded_D) {}

  /// Where to read or write head n: in place, or `buffer`, to be filled by load() or written back
  /// by save().
  F* place(std::int64_t b, std::int64_t q, std::int64_t n, F* buffer) const {
    return direct_ ? static_cast<F*>(tensor_.data) + row(b, q, n).offset : buffer;
  }
  void load(std::int64_t b, std::int64_t q, std::int64_t n, F* buffer) const {
    if (!direct_) copy_in(row(b, q, n), buffer, 0);
  }
  void save(std::int64_t b, std::int64_t q, std::int64_t n, const F* buffer) const {
    if (!direct_) copy_out(buffer, 0, row(b, q, n));
  }
  void prefetch(std::int64_t b, std::int64_t q, std::int64_t n) const {
    if (together_) prefetch_elements(tensor_, row(b, q, n).offset, D_);
  }

 private:
  StridedRows row(std::int64_t b, std::int64_t q, std::int64_t n) const {
    const std::int64_t* stride = tensor_.strides;
    return {&tensor_, b * stride[0] + q * stride[1] + n * D_ * stride[2], 1, D_, 0, stride[2]};
  }

  const TensorView& tensor_;
  std::int64_t D_;
  bool together_, direct_;
};

/// All tokens of one (image, head) of value or its gradient.
StridedRows tokens_of(const TensorView& tensor, std::int64_t b, std::int64_t n) {
  const std::int64_t* stride = tensor.strides;
  return {&tensor,  b * stride[0] + n * stride[2], tensor.shape[1], tensor.shape[3], stride[1],
          stride[3]};
}

/// Copies the tokens side by side; channels beyond D are zero.
template <class F>
void pack(const TensorView& value, std::int64_t b, std::int64_t n, std::int64_t padded_D, F* to) {
  const StridedRows tokens = tokens_of(value, b, n);
  if (tokens.columns < padded_D) std::fill_n(to, tokens.rows * padded_D, F(0));
  copy_in(tokens, to, padded_D);
}

/// Points and tokens of a call, and the memory of their tables.
template <class F, class T>
struct Tables {
  Tables(const MSDeformAttnArgs& args, std::int64_t token_stride)
      : memory(static_cast<std::size_t>(bytes(args))),
        arena(memory.data()),
        points(args, arena),
        tokens(args, points, token_stride, arena) {}

  static std::int64_t bytes(const MSDeformAttnArgs& args) {
    ScratchArena counter(nullptr);
    const PointReader<F> points(args, counter);
    TapPlanner<F, T>(args, points, 0, counter);
    return counter.bytes();
  }

  Scratch memory;
  ScratchArena arena;
  PointReader<F> points;
  TapPlanner<F, T> tokens;
};

}  // namespace
}  // namespace alignmask::ALIGNMASK_ISA
