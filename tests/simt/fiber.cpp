#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if defined(__x86_64__)
// Saves the registers that a called function must preserve, changes stacks, restores them from the
// other one.
extern "C" void simt_switch_stacks(void** save_to, void* go_to);
asm(R"(
.text
.type simt_switch_stacks, @function
simt_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stacks, . - simt_switch_stacks
)");
#endif

namespace simt {

Fiber::~Fiber() {
  if (stack_) munmap(stack_, kStackBytes);
}

void Fiber::restart(void (*entry)()) {
  if (!stack_) {
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stack_ = static_cast<char*>(memory);
  }
#if defined(__SANITIZE_ADDRESS__)
  // The last run may have been abandoned in the middle.
  __asan_unpoison_memory_region(stack_, kStackBytes);
  bottom_ = stack_;
  size_ = kStackBytes;
#endif
#if defined(SIMT_THREAD_SANITIZER)
  if (!tsan_fiber_) tsan_fiber_ = __tsan_create_fiber(0);
#endif
#if defined(__x86_64__)
  // Tops of stacks that all have the same address modulo 4096 would fight over the same cache
  // lines.
  const std::size_t colour = reinterpret_cast<std::uintptr_t>(this) / sizeof(Fiber) % 61;
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes - 64 * (1 + colour));
  *--top = nullptr;  // where entry() would return to
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the six registers
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes;
  makecontext(&context_, entry, 0);
#endif
}

void Fiber::switch_to(Fiber& to, bool last) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack, to.bottom_, to.size_);
#endif
#if defined(SIMT_THREAD_SANITIZER)
  if (!tsan_fiber_) tsan_fiber_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(to.tsan_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
  (void)last;
#if defined(__x86_64__)
  simt_switch_stacks(&stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&context_, &to.context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::arrived(Fiber& from) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  std::size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!from.stack_) {
    from.bottom_ = bottom;
    from.size_ = size;
  }
#else
  (void)from;
#endif
}

}  // namespace simt
