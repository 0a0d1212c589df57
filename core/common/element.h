// Element types of tensors, and the arithmetic type of each. Free of host includes: CUDA kernels
// use it.
#pragma once

namespace alignmask {

struct Half {
  unsigned short bits;
};

struct BFloat16 {
  unsigned short bits;
};

/// For elements whose type a kernel learns only when it runs.
enum class ElementType : unsigned char { kFloat, kDouble, kHalf, kBFloat16 };

template <class T>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};

/// The type of arithmetic on elements of type T: float, or double for double.
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;

}  // namespace alignmask
