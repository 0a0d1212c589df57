// What the tests of the core share: expectations that count failures, and small arrays as tensor
// views.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "common/check.h"
#include "common/cpu/dispatch.h"

namespace alignmask {

inline int failures = 0;

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("FAILED (%s): %s\n", name(cpu_isa()), what.c_str());
  ++failures;
}

/// Elements not given are NaN (0 for integers).
template <class T>
struct Array {
  std::vector<T> data;
  std::vector<std::int64_t> shape;

  Array(std::initializer_list<std::int64_t> sizes, std::initializer_list<double> values = {})
      : shape(sizes) {
    std::size_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
    data.assign(count, std::numeric_limits<T>::quiet_NaN());
    std::size_t i = 0;
    for (const double value : values) data[i++] = static_cast<T>(value);
  }

  TensorView view() {
    TensorView view;
    view.data = data.data();
    view.dtype = std::is_same_v<T, double>         ? DType::kFloat64
                 : std::is_same_v<T, float>        ? DType::kFloat32
                 : std::is_same_v<T, std::int64_t> ? DType::kInt64
                 : std::is_same_v<T, std::int32_t> ? DType::kInt32
                                                   : DType::kUInt8;
    view.present = true;
    view.dims = static_cast<int>(shape.size());
    std::int64_t stride = 1;
    for (int i = view.dims - 1; i >= 0; --i) {
      view.shape[i] = shape[static_cast<std::size_t>(i)];
      view.strides[i] = stride;
      stride *= view.shape[i];
    }
    return view;
  }

  void expect_values(const char* what, std::initializer_list<double> expected) const {
    std::size_t i = 0;
    for (const double value : expected) {
      const double found = static_cast<double>(data[i]);
      expect(std::abs(found - value) <= 1e-5, std::string(what) + "[" + std::to_string(i) +
                                                  "] is " + std::to_string(found) + " instead of " +
                                                  std::to_string(value));
      ++i;
    }
    expect(i == data.size(),
           std::string(what) + " has another number of elements than this test expects");
  }
};

/// Calls run(), which must throw Error with this message.
template <class Error, class Run>
void expect_throw(const std::string& message, Run run) {
  try {
    run();
    expect(false, "no error: " + message);
  } catch (const Error& error) {
    expect(error.what() == message, error.what());
  }
}

/// Prints the verdict; returns the exit code.
inline int verdict(const char* what) {
  std::printf("%s: %s\n", what, failures ? "FAILED" : "passed");
  return failures != 0;
}

}  // namespace alignmask
