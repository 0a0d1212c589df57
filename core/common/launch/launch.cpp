#include "launch.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "common/check.h"

namespace alignmask {

unsigned blocks_for(std::int64_t items, std::int64_t items_per_block) {
  const std::int64_t blocks = items / items_per_block + (items % items_per_block != 0);
  if (blocks > std::numeric_limits<std::int32_t>::max())
    throw std::length_error("a grid of " + std::to_string(blocks) +
                            " blocks is larger than CUDA allows");
  return static_cast<unsigned>(blocks);
}

int checked_int(std::int64_t size, const char* op, const char* what) {
  if (size > std::numeric_limits<int>::max())
    throw ValueError(std::string(op) + ": " + what + " = " + std::to_string(size) +
                     " is more than kernels on this device can count");
  return static_cast<int>(size);
}

const char* kernel_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float";
    case DType::kFloat64:
      return "double";
    case DType::kFloat16:
      return "Half";
    case DType::kBFloat16:
      return "BFloat16";
    case DType::kInt64:
      return "Int64";
    case DType::kInt32:
      return "int";
    case DType::kUInt8:
    case DType::kBool:
      return "unsigned char";
  }
  return "unknown";
}

ElementType element_type(DType dtype) {
  return dtype == DType::kFloat64    ? ElementType::kDouble
         : dtype == DType::kFloat16  ? ElementType::kHalf
         : dtype == DType::kBFloat16 ? ElementType::kBFloat16
                                     : ElementType::kFloat;
}

bool is_arithmetic(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kFloat64; }

void copy_strides(const TensorView& tensor, long long* to) {
  std::copy(tensor.strides, tensor.strides + tensor.dims, to);
}

void contiguous_strides(const TensorView& tensor, long long* to) {
  long long stride = 1;
  for (int i = tensor.dims - 1; i >= 0; stride *= tensor.shape[i--]) to[i] = stride;
}

bool is_contiguous(const TensorView& tensor) {
  long long stride = 1;
  for (int i = tensor.dims - 1; i >= 0; stride *= tensor.shape[i--])
    if (tensor.shape[i] != 1 && tensor.strides[i] != stride) return false;
  return true;
}

bool is_aligned(const TensorView& tensor, int leading, int count) {
  for (int i = 0; i < leading; ++i)
    if (tensor.shape[i] > 1 && tensor.strides[i] % count) return false;
  return reinterpret_cast<std::uintptr_t>(tensor.data) %
             static_cast<std::uintptr_t>(count * element_bytes(tensor.dtype)) ==
         0;
}

std::string describe(const LaunchTarget& target) {
  return std::string(target.op) + " on " + to_string(target.device) +
         (target.check ? " (" + target.check->sizes() + ")" : "");
}

}  // namespace alignmask
