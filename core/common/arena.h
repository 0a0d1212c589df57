// A piece of memory, cut into arrays.
#pragma once

#include <cstdint>

namespace alignmask {

/// Every array begins at a multiple of kAlignment, as does the memory. Over a null pointer nothing
/// is cut, only counted: so the same code finds out how much memory is needed.
template <int kAlignment>
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

  /// The next array, of `count` elements.
  template <class T>
  __attribute__((always_inline)) T* take(std::int64_t count) {
    unsigned char* const array = memory_ ? memory_ + bytes_ : nullptr;
    bytes_ +=
        (count * static_cast<std::int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(array);
  }

  /// Of all arrays so far.
  std::int64_t bytes() const { return bytes_; }

 private:
  unsigned char* memory_;
  std::int64_t bytes_ = 0;
};

using ScratchArena = Arena<64>;    ///< of a CPU kernel's Scratch, by cache lines
using WorkspaceArena = Arena<16>;  ///< of the memory that the caller lends to CUDA kernels

}  // namespace alignmask
