// How the CPU schedule lays out the values of one (image, head), and where a sampling point falls in that layout.
//
// A level of h x w tokens is stored as (h + 3) rows of (w + 1) tokens, kWidth channels each: two rows of zeros above,
// one below, one column of zeros to the left (which also ends the row before). All four corners of any position inside
// [-1, w) x [-1, h) then exist and are zero where they should be, and the two rows above serve the points outside. So
// sampling has no branch, reads contiguous memory, and the data type and strides of the tensor no longer matter.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/simd.h"
#include "../common/strided_copy.h"
#include "ms_deform_attn.h"
#include "ms_deform_attn_math.h"

namespace alignmask::ALIGNMASK_ISA {

struct PackedLevel {
  std::int64_t height, width;
  std::int64_t first_token;   // in the tensor's S
  std::int64_t first_packed;  // in the packed slice: the top left zero
  std::int64_t row;           // packed tokens per row

  bool empty() const { return height == 0 || width == 0; }
  std::int64_t packed_tokens() const { return empty() ? 0 : (height + 3) * row + 1; }
  std::int64_t packed_index(std::int64_t y, std::int64_t x) const { return (y + 2) * row + x + 1; }
};

/// The levels of a call; `stacked`: one behind the other in one slice, else each has a slice of its own.
/// Nothing is sampled from an empty level, and it takes no room.
inline std::int64_t pack_levels(const MSDeformAttnArgs& args, bool stacked, PackedLevel* packed) {
  std::int64_t token = 0, first = 0, longest = 0;
  for (std::size_t l = 0; l < args.levels.size(); ++l) {
    packed[l] = {args.levels[l].height, args.levels[l].width, token, stacked ? first : 0, args.levels[l].width + 1};
    token += packed[l].height * packed[l].width;
    first += packed[l].packed_tokens();
    longest = packed[l].packed_tokens() > longest ? packed[l].packed_tokens() : longest;
  }
  return stacked ? first : longest;
}

/// Channels [channel, channel + count) of head n of image b, over `rows` token rows of a level from row y on.
inline StridedRows level_rows(const TensorView& tensor, const PackedLevel& level, std::int64_t b, std::int64_t n,
                              std::int64_t y, std::int64_t channel, std::int64_t count) {
  const std::int64_t token = level.first_token + y * level.width;
  return {&tensor,
          b * tensor.strides[0] + token * tensor.strides[1] + n * tensor.strides[2] + channel * tensor.strides[3],
          level.width,
          count,
          tensor.strides[1],
          tensor.strides[3]};
}

/// Writes the zeros around a level that is not empty; pack_rows() never touches them.
template <int kWidth, class F>
inline void zero_border(const PackedLevel& level, F* packed) {
  const auto zero = [&](std::int64_t first, std::int64_t count) {
    for (F *to = packed + first * kWidth, *end = to + count * kWidth; to < end; ++to) *to = 0;
  };
  zero(0, 2 * level.row);
  for (std::int64_t y = 0; y < level.height; ++y) zero(level.packed_index(y, -1), 1);
  zero(level.packed_index(level.height, -1), level.row + 1);
}

/// Copies rows [first, end) of a level.
template <int kWidth, class F>
inline void pack_rows(const TensorView& tensor, const PackedLevel& level, std::int64_t b, std::int64_t n,
                      std::int64_t channel, std::int64_t count, std::int64_t first, std::int64_t end, F* packed) {
  for (std::int64_t y = first; y < end; ++y) {
    F* to = packed + level.packed_index(y, 0) * kWidth;
    if (count < kWidth)  // channels that only fill up the width
      for (std::int64_t i = 0; i < level.width * kWidth; ++i) to[i] = 0;
    copy_in(level_rows(tensor, level, b, n, y, channel, count), to, kWidth);
  }
}

/// Copies all of a level back.
template <int kWidth, class F>
inline void unpack_rows(const F* packed, const PackedLevel& level, std::int64_t b, std::int64_t n, std::int64_t channel,
                        std::int64_t count, const TensorView& tensor) {
  for (std::int64_t y = 0; y < level.height; ++y)
    copy_out(packed + level.packed_index(y, 0) * kWidth, kWidth, level_rows(tensor, level, b, n, y, channel, count));
}

constexpr int kPoints = 4;  // planned together, one per lane

/// Where kPoints points of one level fall: the packed index of the top left corner and how far past it the point is.
template <class F>
struct Plan {
  Pack<std::int32_t, kPoints> token;
  Pack<F, kPoints> x, y;
};

/// `locations`: kPoints pairs (x, y).
template <class F>
ALIGNMASK_HOST_DEVICE Plan<F> plan_points(const PackedLevel& level, const F* locations) {
  using Lanes = Pack<F, kPoints>;
  using Ints = Pack<std::int32_t, kPoints>;
  const Lanes first = load<Lanes>(locations), second = load<Lanes>(locations + kPoints);
  const Lanes width = Lanes{} + static_cast<F>(level.width), height = Lanes{} + static_cast<F>(level.height);
  const Lanes x = pixel_position<Lanes>(__builtin_shufflevector(first, second, 0, 2, 4, 6), width);
  const Lanes y = pixel_position<Lanes>(__builtin_shufflevector(first, second, 1, 3, 5, 7), height);
  const auto inside = (x >= -1) & (x < width) & (y >= -1) & (y < height);
  const Lanes zero{};
  const Lanes safe_x = inside ? x : zero, safe_y = inside ? y : zero;
  const Ints low_x = floor_to_int<Lanes, Ints>(safe_x), low_y = floor_to_int<Lanes, Ints>(safe_y);
  const Ints token = (low_y + 2) * static_cast<std::int32_t>(level.row) + low_x + 1;
  return {token & __builtin_convertvector(inside, Ints),                // outside: the zeros from index 0 on
          x == x ? safe_x - __builtin_convertvector(low_x, Lanes) : x,  // NaN stays NaN
          y == y ? safe_y - __builtin_convertvector(low_y, Lanes) : y};
}

/// Are the dimensions of `tensor` from `dim` on contiguous F? Not if the tensor is absent.
template <class F>
inline bool is_contiguous(const TensorView& tensor, int dim) {
  if (!tensor.present) return false;
  std::int64_t expected = 1;
  for (int i = tensor.dims - 1; i >= dim; expected *= tensor.shape[i--])
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
  return tensor.dtype == (sizeof(F) == 8 ? DType::kFloat64 : DType::kFloat32);
}

/// The `count` points of a (image, query, head, level), or their gradients, as contiguous F, padded to whole plans: in
/// place where the tensors are so already. Of gradients, one tensor or both may be absent.
template <class F>
class Points {
 public:
  Points(const TensorView& locations, const TensorView& weights, std::int64_t count)
      : locations_(locations),
        weights_(weights),
        count_(count),
        padded_((count_ + kPoints - 1) / kPoints * kPoints),
        direct_(count_ == padded_ && is_contiguous<F>(locations, 4) && is_contiguous<F>(weights, 4)) {}

  /// Elements of F in a buffer for read() or for the gradients; the caller zeroes it once.
  std::int64_t buffer_size() const { return 3 * padded_; }

  struct Row {
    F* locations;  // [padded count, 2]
    F* weights;    // [padded count]
  };

  Row buffer_row(F* buffer) const { return {buffer, buffer + 2 * padded_}; }

  /// In place, or `buffer` with unspecified contents.
  Row row(std::int64_t b, std::int64_t q, std::int64_t n, std::int64_t l, F* buffer) const {
    if (!direct_) return buffer_row(buffer);
    return {static_cast<F*>(locations_.data) + offset(locations_, b, q, n, l),
            static_cast<F*>(weights_.data) + offset(weights_, b, q, n, l)};
  }

  Row read(std::int64_t b, std::int64_t q, std::int64_t n, std::int64_t l, F* buffer) const {
    const Row to = row(b, q, n, l, buffer);
    if (!direct_) {
      copy_in(location_rows(b, q, n, l), to.locations, 2);
      copy_in(weight_rows(b, q, n, l), to.weights, 0);
    }
    return to;
  }

  void write(std::int64_t b, std::int64_t q, std::int64_t n, std::int64_t l, const Row& from) const {
    if (direct_ && from.weights == row(b, q, n, l, nullptr).weights) return;  // written in place
    if (locations_.present) copy_out(from.locations, 2, location_rows(b, q, n, l));
    if (weights_.present) copy_out(from.weights, 0, weight_rows(b, q, n, l));
  }

 private:
  static std::int64_t offset(const TensorView& tensor, std::int64_t b, std::int64_t q, std::int64_t n, std::int64_t l) {
    return b * tensor.strides[0] + q * tensor.strides[1] + n * tensor.strides[2] + l * tensor.strides[3];
  }
  StridedRows location_rows(std::int64_t b, std::int64_t q, std::int64_t n, std::int64_t l) const {
    return {&locations_, offset(locations_, b, q, n, l), count_, 2, locations_.strides[4], locations_.strides[5]};
  }
  StridedRows weight_rows(std::int64_t b, std::int64_t q, std::int64_t n, std::int64_t l) const {
    return {&weights_, offset(weights_, b, q, n, l), 1, count_, 0, weights_.strides[4]};
  }

  const TensorView& locations_;
  const TensorView& weights_;
  std::int64_t count_, padded_;
  bool direct_;
};

}  // namespace alignmask::ALIGNMASK_ISA
