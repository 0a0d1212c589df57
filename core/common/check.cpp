#include "check.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <vector>

#include "strided_copy.h"

namespace alignmask {

std::string to_string(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

std::string to_string(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kInt64:
      return "int64";
    case DType::kInt32:
      return "int32";
    case DType::kUInt8:
      return "uint8";
    case DType::kBool:
      return "bool";
  }
  return "unknown";
}

std::string to_string(Device device) {
  return device.type == DeviceType::kCPU ? "cpu" : "cuda:" + std::to_string(device.index);
}

std::string shape_string(const TensorView& tensor) {
  std::string text = "(";
  for (int i = 0; i < tensor.dims; ++i) text += (i ? ", " : "") + std::to_string(tensor.shape[i]);
  return text + (tensor.dims == 1 ? ",)" : ")");
}

void ArgumentCheck::input(const char* name, const TensorView& tensor, const char* letters,
                          std::initializer_list<DType> allowed) {
  const std::string argument = name;
  if (!tensor.present) fail_type(argument + " is missing");
  if (std::find(allowed.begin(), allowed.end(), tensor.dtype) == allowed.end()) {
    std::string names;
    for (DType dtype : allowed)
      if (names.find(to_string(dtype)) == std::string::npos) names += (names.empty() ? "" : ", ") + to_string(dtype);
    fail_type(argument + " must be of dtype " + names + ", got " + to_string(tensor.dtype));
  }
  if (tensor.dims != static_cast<int>(std::strlen(letters))) {
    fail_value(argument + " must have the " + std::to_string(std::strlen(letters)) + " dimensions " + letters +
               ", got " + shape_string(tensor));
  }
  bool empty = false;
  for (int i = 0; i < tensor.dims; ++i) empty = empty || tensor.shape[i] == 0;
  if (!tensor.data && !empty) fail_value(argument + " has no memory");
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % static_cast<std::uintptr_t>(element_bytes(tensor.dtype)))
    fail_value(argument + " is not aligned to its element size in memory");
  if (!device_source_) {
    device_ = tensor.device;
    device_source_ = name;
  } else if (!(device_ == tensor.device)) {
    fail_value(argument + " is on " + to_string(tensor.device) + ", but " + device_source_ + " is on " +
               to_string(device_));
  }
  for (int i = 0; i < tensor.dims; ++i) {
    const char letter = letters[i];
    const std::int64_t given = tensor.shape[i];
    if (std::isdigit(static_cast<unsigned char>(letter))) {
      if (given != letter - '0')
        fail_value(argument + " (" + letters + ") must have size " + letter + " there, got " + shape_string(tensor));
      continue;
    }
    Size& size = sizes_[static_cast<unsigned char>(letter)];
    if (!size.source) size = {given, name};
    if (size.value != given) {
      fail_value(argument + " (" + letters + ") has " + letter + " = " + std::to_string(given) + " in " +
                 shape_string(tensor) + ", but " + size.source + " has " + letter + " = " + std::to_string(size.value));
    }
  }
}

void ArgumentCheck::output(const char* name, const TensorView& tensor, const char* letters,
                           std::initializer_list<DType> allowed) {
  if (!tensor.present) return;
  input(name, tensor, letters, allowed);
  if (tensor.read_only) fail_value(std::string(name) + " is an output, but its memory is read-only");
  // Sorted by stride, every dimension must step over all that the smaller ones reach.
  std::vector<int> order(static_cast<std::size_t>(tensor.dims));
  for (int i = 0; i < tensor.dims; ++i) {
    if (tensor.shape[i] == 0) return;
    order[static_cast<std::size_t>(i)] = i;
  }
  std::sort(order.begin(), order.end(),
            [&](int a, int b) { return std::abs(tensor.strides[a]) < std::abs(tensor.strides[b]); });
  std::int64_t reach = 0;
  for (const int dim : order) {
    if (tensor.shape[dim] == 1) continue;
    if (std::abs(tensor.strides[dim]) <= reach)
      fail_value(std::string(name) + " is an output, but several of its elements share one place in memory");
    reach += (tensor.shape[dim] - 1) * std::abs(tensor.strides[dim]);
  }
}

void ArgumentCheck::in_range(const char* name, const TensorView& tensor, std::int64_t low, std::int64_t high) const {
  if (tensor.device.type != DeviceType::kCPU) return;
  for (std::int64_t i = 0; i < tensor.shape[0]; ++i) {
    const std::int64_t value = ALIGNMASK_ISA::int_at(tensor, i * tensor.strides[0]);
    if (value < low || value >= high)
      fail_value(std::string(name) + "[" + std::to_string(i) + "] = " + std::to_string(value) + " is outside [" +
                 std::to_string(low) + ", " + std::to_string(high - 1) + "]");
  }
}

std::string ArgumentCheck::sizes() const {
  std::string text;
  for (char letter = 'A'; letter <= 'Z'; ++letter)
    if (sizes_[static_cast<unsigned char>(letter)].source)
      text += (text.empty() ? "" : ", ") + std::string(1, letter) + " = " + std::to_string(size(letter));
  return text;
}

void ArgumentCheck::require_cpu() const {
  if (device_.type != DeviceType::kCPU) fail_value("no kernel for device " + to_string(device_) + " in this build");
}

void ArgumentCheck::workspace(const TensorView& tensor, std::int64_t bytes) const {
  if (bytes == 0) return;
  if (!tensor.present) fail_type("workspace is missing: " + std::to_string(bytes) + " bytes are needed");
  if (tensor.dtype != DType::kUInt8) fail_type("workspace must be of dtype uint8, got " + to_string(tensor.dtype));
  if (tensor.dims != 1 || tensor.shape[0] < bytes || tensor.strides[0] != 1)
    fail_value("workspace must be " + std::to_string(bytes) + " contiguous bytes, got " + shape_string(tensor));
  if (!(tensor.device == device_))
    fail_value("workspace is on " + to_string(tensor.device) + ", but " + device_source_ + " is on " +
               to_string(device_));
  if (tensor.read_only) fail_value("workspace is read-only");
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % 16) fail_value("workspace is not aligned to 16 bytes");
}

}  // namespace alignmask
