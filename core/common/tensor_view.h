// Tensors as every op receives them: borrowed memory, a data type, a device, sizes and strides.
#pragma once

#include <cstdint>

#include "target.h"

namespace alignmask {

enum class DType : std::uint8_t {
  kFloat32,
  kFloat64,
  kFloat16,
  kBFloat16,
  kInt64,
  kInt32,
  kUInt8,
  kBool
};

enum class DeviceType : std::uint8_t { kCPU, kCUDA };

struct Device {
  DeviceType type = DeviceType::kCPU;
  int index = 0;
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
};

/// Valid only while the call that received it runs.
struct TensorView {
  static constexpr int kMaxDims = 8;

  void* data = nullptr;
  DType dtype = DType::kFloat32;
  Device device;
  int dims = 0;
  bool present = false;  ///< false: the caller passed nothing (an optional output it does not need)
  bool read_only = false;  ///< true: must not be used as an output
  std::int64_t shape[kMaxDims] = {};
  std::int64_t strides[kMaxDims] = {};  ///< in elements, may be zero or negative

  std::int64_t elements() const {
    std::int64_t count = 1;
    for (int i = 0; i < dims; ++i) count *= shape[i];
    return count;
  }
};

constexpr int element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kUInt8:
    case DType::kBool:
      return 1;
  }
  return 0;
}

/// Element of a tensor of int64 or int32.
ALIGNMASK_HOST_DEVICE std::int64_t int_at(const TensorView& tensor, std::int64_t offset) {
  return tensor.dtype == DType::kInt64 ? static_cast<const std::int64_t*>(tensor.data)[offset]
                                       : static_cast<const std::int32_t*>(tensor.data)[offset];
}

}  // namespace alignmask
