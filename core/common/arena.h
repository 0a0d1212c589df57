// A piece of memory that the caller lends for one call, cut into arrays.
#pragma once

#include <cstdint>

namespace alignmask {

class Workspace {
 public:
  /// `memory`: aligned to 16 bytes; null to find out how much is needed.
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

  /// The next array, aligned to 16 bytes.
  void* take(std::int64_t bytes) {
    void* const array = memory_ ? memory_ + bytes_ : nullptr;
    bytes_ += (bytes + 15) / 16 * 16;
    return array;
  }

  /// Of all arrays so far.
  std::int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  std::int64_t bytes_ = 0;
};

}  // namespace alignmask
