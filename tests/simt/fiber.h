// Fibers: functions that run on a stack of their own and hand the processor to each other.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SIMT_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

namespace simt {

/// A flow of control: the caller's, or a function on its own stack.
class Fiber {
 public:
  Fiber() = default;  ///< stands for the caller
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Makes this fiber start with entry() when it is next switched to. entry must not return.
  void restart(void (*entry)());

  /// Stops here, and goes on at `to`. Returns when somebody switches back. `last`: nobody will.
  void switch_to(Fiber& to, bool last = false);

  /// To be called first in entry(): `from` is where the switch came from.
  static void arrived(Fiber& from);

 private:
  static constexpr std::size_t kStackBytes = std::size_t{256} << 10;

  char* stack_ = nullptr;
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_ = {};
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom_ = nullptr;  // of the stack, as the sanitizer wants to know it
  std::size_t size_ = 0;
#endif
#if defined(SIMT_THREAD_SANITIZER)
  void* tsan_fiber_ = nullptr;
#endif
};

}  // namespace simt
