// Kernel launches as data. An op's cuda/launches.cpp computes once which kernels run with which
// parameters; the CUDA runtime, NVRTC through Python, or the host SIMT runtime of the tests only
// carries them out.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "common/element.h"
#include "common/tensor_view.h"

namespace alignmask {

/// One kernel over a one-dimensional grid.
struct Launch {
  /// Its name in C++, without namespace, as in the op's list: "f<float, 4, 8>".
  std::string kernel;
  unsigned blocks = 0;
  unsigned threads = 0;  ///< in a block
  /// The kernel's only argument, a struct that it gets by value.
  std::vector<unsigned char> params;
};

/// `items` divided among blocks of `items_per_block`. Throws std::length_error if a grid cannot be
/// that large.
unsigned blocks_for(std::int64_t items, std::int64_t items_per_block);

template <class Params>
Launch make_launch(std::string kernel, unsigned blocks, unsigned threads, const Params& params) {
  Launch launch{std::move(kernel), blocks, threads, std::vector<unsigned char>(sizeof(Params))};
  std::memcpy(launch.params.data(), &params, sizeof(Params));
  return launch;
}

/// Name of an element type inside a kernel's name.
const char* kernel_type(DType dtype);

/// `size` as the kernels count it. Throws ValueError that names `op` and `what` if it does not fit.
int checked_int(std::int64_t size, const char* op, const char* what);

ElementType element_type(DType dtype);  ///< of a floating type

bool is_arithmetic(DType dtype);  ///< float32 or float64?

void copy_strides(const TensorView& tensor, long long* to);
void contiguous_strides(const TensorView& tensor, long long* to);  ///< that it would have
bool is_contiguous(const TensorView& tensor);

/// Do the memory and the strides of the `leading` dimensions allow reading `count` elements at
/// once?
bool is_aligned(const TensorView& tensor, int leading, int count);

class ArgumentCheck;

struct LaunchTarget {
  const char* op;  ///< whose kernels they are
  Device device;
  void* stream;
  const ArgumentCheck* check = nullptr;  ///< knows the sizes, for errors
};

/// "<op> on cuda:0 (B = 2, ...)", for errors.
std::string describe(const LaunchTarget& target);

/// Do tensors on this device go to CUDA kernels (else to CPU kernels)?
bool uses_cuda_kernels(Device device);

/// Enqueues the launches one after the other. Throws ValueError where this build cannot.
void run(const LaunchTarget& target, const std::vector<Launch>& launches);

}  // namespace alignmask
