// Candidates and samples, a vector register of points at a time.
#pragma once

#include <cstdint>

#include "common/cpu/simd.h"
#include "common/cpu/strided_copy.h"
#include "mask_points/formula.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace alignmask::ALIGNMASK_ISA {

constexpr int kBlockLanes = ALIGNMASK_VECTOR_BYTES / 8;  // blocks of random words at once
constexpr int kPointLanes = 2 * kBlockLanes;             // points at once

using WordLanes = Pack<std::uint64_t, kBlockLanes>;
using IntLanes = Pack<std::int32_t, kPointLanes>;
template <class F>
using NumberLanes = Pack<F, kPointLanes>;

/// Products of the lower halves of lanes with a number of 32 bits.
struct MultiplyLanes {
  ALIGNMASK_HOST_DEVICE WordLanes operator()(WordLanes words, unsigned factor) const {
#if defined(__AVX512F__)
    return reinterpret_cast<WordLanes>(
        _mm512_mul_epu32(reinterpret_cast<__m512i>(words), _mm512_set1_epi64(factor)));
#elif defined(__AVX2__)
    return reinterpret_cast<WordLanes>(
        _mm256_mul_epu32(reinterpret_cast<__m256i>(words), _mm256_set1_epi64x(factor)));
#elif defined(__SSE2__)
    return reinterpret_cast<WordLanes>(
        _mm_mul_epu32(reinterpret_cast<__m128i>(words), _mm_set1_epi64x(factor)));
#else
    return (words & 0xffffffffu) * factor;
#endif
  }
};

template <class F>
struct PointLanes {
  NumberLanes<F> x, y;
};

template <class F>
ALIGNMASK_HOST_DEVICE NumberLanes<F> coordinates(Pack<std::uint32_t, kPointLanes> words) {
  return __builtin_convertvector(reinterpret_cast<IntLanes>(words >> 8), NumberLanes<F>) *
         static_cast<F>(kCoordinateStep);
}

/// The candidates 2 · block, 2 · block + 1, ... of a row.
template <class F>
ALIGNMASK_HOST_DEVICE PointLanes<F> candidates_from(std::int64_t block, std::int64_t row,
                                                    std::int64_t seed) {
  WordLanes blocks;
  for (int i = 0; i < kBlockLanes; ++i) blocks[i] = static_cast<std::uint64_t>(block + i);
  const auto random =
      random_words(blocks, WordLanes{} + static_cast<std::uint64_t>(row), seed, MultiplyLanes());
  // Lower half: of the even candidate; upper half: of the odd one.
  const auto both = [](WordLanes even, WordLanes odd) {
    return reinterpret_cast<Pack<std::uint32_t, kPointLanes>>((even & 0xffffffffu) | (odd << 32));
  };
  return {coordinates<F>(both(random.word[0], random.word[2])),
          coordinates<F>(both(random.word[1], random.word[3]))};
}

/// Any kPointLanes candidates of a row.
template <class F>
ALIGNMASK_HOST_DEVICE PointLanes<F> candidates_at(const std::int32_t* index, std::int64_t row,
                                                  std::int64_t seed) {
  Pack<std::uint32_t, kPointLanes> x, y;
  for (int half = 0; half < 2; ++half) {
    using Half = Pack<std::uint32_t, kBlockLanes>;
    const auto indices = __builtin_convertvector(load<Half>(index + half * kBlockLanes), WordLanes);
    const auto random = random_words(indices >> 1, WordLanes{} + static_cast<std::uint64_t>(row),
                                     seed, MultiplyLanes());
    const WordLanes odd = -(indices & 1);  // all bits
    const auto chosen = [&](int word) {
      return __builtin_convertvector((random.word[word] & ~odd) | (random.word[word + 2] & odd),
                                     Half);
    };
    store(reinterpret_cast<std::uint32_t*>(&x) + half * kBlockLanes, chosen(0));
    store(reinterpret_cast<std::uint32_t*>(&y) + half * kBlockLanes, chosen(1));
  }
  return {coordinates<F>(x), coordinates<F>(y)};
}

/// Pixels at the top left of points, and how far past them the points are.
template <class F>
struct Positions {
  IntLanes left, top;
  NumberLanes<F> x_part, y_part;

  ALIGNMASK_HOST_DEVICE static Positions of(const PointLanes<F>& point, std::int64_t width,
                                            std::int64_t height) {
    const NumberLanes<F> column = exact_position(point.x, static_cast<F>(width)),
                         row = exact_position(point.y, static_cast<F>(height));
    const NumberLanes<F> left = floor_of(column), top = floor_of(row);
    return {__builtin_convertvector(left, IntLanes), __builtin_convertvector(top, IntLanes),
            column - left, row - top};
  }
};

/// Numbers at some places of memory, and those behind them.
template <class F>
ALIGNMASK_HOST_DEVICE void gather_pairs(const F* memory, IntLanes at, NumberLanes<F>* first,
                                        NumberLanes<F>* second) {
  if constexpr (sizeof(F) == 4) {
#if defined(__AVX512F__)
    const auto* pairs = reinterpret_cast<const long long*>(memory);
    const auto low = reinterpret_cast<__m256i>(lower_half<std::int32_t, 16>(at)),
               high = reinterpret_cast<__m256i>(upper_half<std::int32_t, 16>(at));
    return split_pairs(reinterpret_cast<NumberLanes<F>>(_mm512_i32gather_epi64(low, pairs, 4)),
                       reinterpret_cast<NumberLanes<F>>(_mm512_i32gather_epi64(high, pairs, 4)),
                       first, second);
#elif defined(__AVX2__)
    const auto* pairs = reinterpret_cast<const long long*>(memory);
    const auto low = reinterpret_cast<__m128i>(lower_half<std::int32_t, 8>(at)),
               high = reinterpret_cast<__m128i>(upper_half<std::int32_t, 8>(at));
    return split_pairs(reinterpret_cast<NumberLanes<F>>(_mm256_i32gather_epi64(pairs, low, 4)),
                       reinterpret_cast<NumberLanes<F>>(_mm256_i32gather_epi64(pairs, high, 4)),
                       first, second);
#endif
  }
  for (int i = 0; i < kPointLanes; ++i) {
    (*first)[i] = memory[at[i]];
    (*second)[i] = memory[at[i] + 1];
  }
}

/// A row's pixels with one of zeros around them, so that every point in [0, 1)² has four.
template <class F>
class PaddedMap {
 public:
  PaddedMap(F* memory, std::int64_t height, std::int64_t width)
      : memory_(memory),
        height_(height),
        width_(width) {}

  static std::int64_t elements(std::int64_t height, std::int64_t width) {
    return (height + 2) * (width + 2);
  }

  void clear() { std::fill_n(memory_, elements(height_, width_), F(0)); }

  /// From row r of [R, H, W].
  void read(const TensorView& maps, std::int64_t r) {
    clear();
    copy_in(rows(maps, r), memory_ + pitch() + 1, pitch());
  }
  void write(const TensorView& maps, std::int64_t r) const {
    copy_out(memory_ + pitch() + 1, pitch(), rows(maps, r));
  }

  /// Place of the pixel at the top left.
  ALIGNMASK_HOST_DEVICE IntLanes places(const Positions<F>& position) const {
    return (position.top + 1) * static_cast<std::int32_t>(pitch()) + (position.left + 1);
  }

  ALIGNMASK_HOST_DEVICE NumberLanes<F> sample(const PointLanes<F>& point) const {
    const auto position = Positions<F>::of(point, width_, height_);
    const IntLanes at = places(position);
    Corners<NumberLanes<F>> corner;
    gather_pairs(memory_, at, &corner.top_left, &corner.top_right);
    gather_pairs(memory_ + pitch(), at, &corner.bottom_left, &corner.bottom_right);
    return blend(corner, position.x_part, position.y_part);
  }

  /// Adds `gradient` times what a sample at the point is of each pixel. Only the first `count`
  /// points, and of those the ones in [0, 1)².
  ALIGNMASK_HOST_DEVICE void add(const PointLanes<F>& point, const F* gradient, int count) {
    const auto inside = (point.x >= 0) & (point.x < 1) & (point.y >= 0) & (point.y < 1);
    const NumberLanes<F> zero{};
    const PointLanes<F> safe = {inside ? point.x : zero, inside ? point.y : zero};
    const auto position = Positions<F>::of(safe, width_, height_);
    const IntLanes at = places(position);
    const auto weight = corner_weights(position.x_part, position.y_part);
    for (int i = 0; i < count; ++i) {
      if (!inside[i]) continue;
      F* const top = memory_ + at[i];
      F* const bottom = top + pitch();
      top[0] += weight.top_left[i] * gradient[i];
      top[1] += weight.top_right[i] * gradient[i];
      bottom[0] += weight.bottom_left[i] * gradient[i];
      bottom[1] += weight.bottom_right[i] * gradient[i];
    }
  }

 private:
  std::int64_t pitch() const { return width_ + 2; }
  StridedRows rows(const TensorView& maps, std::int64_t r) const {
    return {&maps, r * maps.strides[0], height_, width_, maps.strides[1], maps.strides[2]};
  }

  F* memory_;
  std::int64_t height_, width_;
};

}  // namespace alignmask::ALIGNMASK_ISA
