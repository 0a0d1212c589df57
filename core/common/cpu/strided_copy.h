// Rows of a tensor into contiguous float or double, and back, whatever the tensor's data type and
// strides.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/half.h"
#include "common/target.h"
#include "common/tensor_view.h"
#include "parallel_for.h"

namespace alignmask::ALIGNMASK_ISA {

/// A matrix inside a tensor.
struct StridedRows {
  const TensorView* tensor;
  std::int64_t offset;  ///< of the first element, in elements
  std::int64_t rows, columns;
  std::int64_t row_stride, column_stride;
};

template <class To, class From>
inline void convert_contiguous(const From* from, To* to, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = convert<To>(from[i]);
}

#if defined(__F16C__)
// The compiler does not vectorise these conversions by itself. Whole registers, since reading
// back a register that was stored in two halves stalls.
inline void convert_contiguous(const Half* from, float* to, std::int64_t count) {
  std::int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16)
    _mm512_storeu_ps(
        to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
#endif
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  for (; i < count; ++i) to[i] = to_float(from[i]);
}

inline void convert_contiguous(const float* from, Half* to, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < count; ++i) to[i] = to_half(from[i]);
}
#endif

/// Calls function(pointer to the first element) with the tensor's element type.
template <class Function>
inline void with_floats(const TensorView& tensor, std::int64_t offset, Function function) {
  switch (tensor.dtype) {
    case DType::kFloat32:
      return function(static_cast<float*>(tensor.data) + offset);
    case DType::kFloat64:
      return function(static_cast<double*>(tensor.data) + offset);
    case DType::kFloat16:
      return function(static_cast<Half*>(tensor.data) + offset);
    case DType::kBFloat16:
      return function(static_cast<BFloat16*>(tensor.data) + offset);
    default:
      return;  // the op's checks let no other type through
  }
}

/// Do the elements of the dimensions from `dim` on lie together, in order? Not if the tensor is
/// absent.
inline bool together(const TensorView& tensor, int dim) {
  if (!tensor.present) return false;
  std::int64_t expected = 1;
  for (int i = tensor.dims - 1; i >= dim; expected *= tensor.shape[i--])
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
  return true;
}

/// Are they of type F, too?
template <class F>
inline bool contiguous(const TensorView& tensor, int dim) {
  return together(tensor, dim) &&
         tensor.dtype == (sizeof(F) == 8 ? DType::kFloat64 : DType::kFloat32);
}

/// Prefetches `count` elements from `offset` on.
inline void prefetch_elements(const TensorView& tensor, std::int64_t offset, std::int64_t count) {
  const auto bytes = static_cast<std::int64_t>(element_bytes(tensor.dtype));
  const char* const from = static_cast<const char*>(tensor.data) + offset * bytes;
  for (std::int64_t i = 0; i < count * bytes; i += 64) __builtin_prefetch(from + i);
}

/// Asks for large pages for an output that will be written as a whole. Absent tensors may be
/// passed.
inline void prefer_large_pages(const TensorView& tensor) {
  if (!tensor.present) return;
  for (int i = 0; i < tensor.dims; ++i)
    if (tensor.strides[i] < 0) return;
  alignmask::prefer_large_pages(
      tensor.data, static_cast<std::size_t>(tensor.elements() * element_bytes(tensor.dtype)));
}

/// Element of a tensor of floats.
template <class F>
ALIGNMASK_HOST_DEVICE F float_at(const TensorView& tensor, std::int64_t offset) {
  switch (tensor.dtype) {
    case DType::kFloat64:
      return static_cast<F>(static_cast<const double*>(tensor.data)[offset]);
    case DType::kFloat16:
      return convert<F>(static_cast<const Half*>(tensor.data)[offset]);
    case DType::kBFloat16:
      return convert<F>(static_cast<const BFloat16*>(tensor.data)[offset]);
    default:
      return static_cast<F>(static_cast<const float*>(tensor.data)[offset]);
  }
}

/// Rows that are worked on together where the other side has columns in memory: a cache line of
/// them is used at once.
constexpr std::int64_t kTransposedRows = 16;

/// to[r * to_stride + c] = from[c * from_stride + r]
template <class F, class From>
inline void transpose_in(const From* from, std::int64_t from_stride, F* to, std::int64_t to_stride,
                         std::int64_t rows, std::int64_t columns) {
  for (std::int64_t first = 0; first < rows; first += kTransposedRows) {
    const std::int64_t end = first + kTransposedRows < rows ? first + kTransposedRows : rows;
    for (std::int64_t c = 0; c < columns; ++c)
      for (std::int64_t r = first; r < end; ++r)
        to[r * to_stride + c] = convert<F>(from[c * from_stride + r]);
  }
}

/// to[c * to_stride + r] = from[r * from_stride + c]
template <class F, class To>
inline void transpose_out(const F* from, std::int64_t from_stride, To* to, std::int64_t to_stride,
                          std::int64_t rows, std::int64_t columns) {
  for (std::int64_t first = 0; first < rows; first += kTransposedRows) {
    const std::int64_t end = first + kTransposedRows < rows ? first + kTransposedRows : rows;
    for (std::int64_t c = 0; c < columns; ++c)
      for (std::int64_t r = first; r < end; ++r)
        to[c * to_stride + r] = convert<To>(from[r * from_stride + c]);
  }
}

/// to[r * to_stride + c] = source(r, c)
template <class F>
inline void copy_in(const StridedRows& source, F* to, std::int64_t to_stride) {
  with_floats(*source.tensor, source.offset, [&](auto* from) {
    if (source.row_stride == 1 && source.column_stride != 1)
      return transpose_in(from, source.column_stride, to, to_stride, source.rows, source.columns);
    for (std::int64_t r = 0; r < source.rows; ++r, from += source.row_stride, to += to_stride) {
      if (source.column_stride == 1) {
        convert_contiguous(from, to, source.columns);
      } else {
        for (std::int64_t c = 0; c < source.columns; ++c)
          to[c] = convert<F>(from[c * source.column_stride]);
      }
    }
  });
}

/// target(r, c) = from[r * from_stride + c]
template <class F>
inline void copy_out(const F* from, std::int64_t from_stride, const StridedRows& target) {
  with_floats(*target.tensor, target.offset, [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    if (target.row_stride == 1 && target.column_stride != 1)
      return transpose_out(from, from_stride, to, target.column_stride, target.rows,
                           target.columns);
    for (std::int64_t r = 0; r < target.rows; ++r, from += from_stride, to += target.row_stride) {
      if (target.column_stride == 1) {
        convert_contiguous(from, to, target.columns);
      } else {
        for (std::int64_t c = 0; c < target.columns; ++c)
          to[c * target.column_stride] = convert<T>(from[c]);
      }
    }
  });
}

}  // namespace alignmask::ALIGNMASK_ISA
