// What the module is made of.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <new>

namespace alignmask {

/// Makes the core's errors those of Python.
void bind_errors();

/// Becomes Python's MemoryError.
struct OutOfMemory : std::bad_alloc {
  explicit OutOfMemory(const char* op);
  const char* what() const noexcept override { return text.data(); }

  std::array<char, 128> text;  // not a string: there is no memory
};

/// Runs a kernel while other Python threads go on.
template <class Kernel>
void without_gil(const char* op, const Kernel& kernel) {
  const pybind11::gil_scoped_release released;
  try {
    kernel();
  } catch (const std::bad_alloc&) {
    throw OutOfMemory(op);
  }
}

/// CUDA kernels: what the build has, and who launches them.
void bind_gpu(pybind11::module_& module);

/// Calls bind_<op>() of every op; CMake generates it.
void bind_ops(pybind11::module_& module);

}  // namespace alignmask
