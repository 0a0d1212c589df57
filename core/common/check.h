// Argument checks shared by the ops: what is wrong, in which op and argument, expected against
// given.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "tensor_view.h"

namespace alignmask {

/// A wrong size, device or value. Becomes Python's ValueError.
struct ValueError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// A wrong data type or kind of argument. Becomes Python's TypeError.
struct TypeError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

inline constexpr std::initializer_list<DType> kFloats = {DType::kFloat32, DType::kFloat64,
                                                         DType::kFloat16, DType::kBFloat16};
inline constexpr std::initializer_list<DType> kMasks = {DType::kBool, DType::kUInt8};
inline constexpr std::initializer_list<DType> kInts = {DType::kInt64, DType::kInt32};

/// Type of arithmetic and accumulation on tensors of `dtype`.
constexpr DType arithmetic_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

std::string to_string(DType dtype);
std::string to_string(double value);
std::string to_string(Device device);
std::string shape_string(const TensorView& tensor);

/// No tensor, and no product of sizes that product() checks, has more elements than this; a size of
/// 0 counts as 1. So no kernel's computation of offsets or bytes overflows 64 bits, whatever it
/// multiplies them with.
inline constexpr std::int64_t kMostElements = std::int64_t{1} << 44;

/// Can a place in memory belong to an element of `a` and to one of `b`? False only if that is
/// proven; it is for slices of one tensor along a dimension, interleaved or not.
bool may_overlap(const TensorView& a, const TensorView& b);

/// Checks the tensors of one call against each other. A letter stands for one size in all of them,
/// a digit for itself. The tensors must outlive it.
class ArgumentCheck {
 public:
  explicit ArgumentCheck(const char* op) : op_(op) { seen_.reserve(16); }

  /// `letters`: one per dimension, e.g. "BQNLP2". Throws TypeError or ValueError that names the
  /// argument.
  void input(const char* name, const TensorView& tensor, const char* letters,
             std::initializer_list<DType> allowed);

  /// As input(); the tensor must also be writable, have no two elements in one place and share none
  /// with another tensor. Absent tensors pass.
  void output(const char* name, const TensorView& tensor, const char* letters,
              std::initializer_list<DType> allowed);

  /// Checks low <= element < high of a one-dimensional tensor of integers. On the CPU only:
  /// elsewhere it would have to wait for the device.
  void in_range(const char* name, const TensorView& tensor, std::int64_t low,
                std::int64_t high) const;

  /// Throws ValueError if the sizes behind these letters have a product beyond kMostElements.
  void product(const char* letters) const;

  /// Throws ValueError unless the tensors are on the CPU.
  void require_cpu() const;

  /// Memory of at least `bytes` bytes (uint8, contiguous, aligned to 16, apart from all tensors
  /// checked before); absent will do if none are needed.
  void workspace(const TensorView& tensor, std::int64_t bytes) const;

  /// Size behind a letter that some tensor bound.
  std::int64_t size(char letter) const { return sizes_[static_cast<unsigned char>(letter)].value; }

  Device device() const { return device_; }

  /// "B = 2, C = 256, ...", for errors.
  std::string sizes() const;

  [[noreturn]] void fail_value(const std::string& message) const {
    throw ValueError(std::string(op_) + ": " + message);
  }
  [[noreturn]] void fail_type(const std::string& message) const {
    throw TypeError(std::string(op_) + ": " + message);
  }

 private:
  struct Size {
    std::int64_t value = 0;
    const char* source = nullptr;
  };
  struct Seen {
    const char* name;
    const TensorView* tensor;
    bool is_output;
  };

  void check(const char* name, const TensorView& tensor, const char* letters,
             std::initializer_list<DType> allowed);
  void remember(const char* name, const TensorView& tensor, bool is_output);

  const char* op_;
  const char* device_source_ = nullptr;
  Device device_;
  Size sizes_[128];
  std::vector<Seen> seen_;
};

}  // namespace alignmask
