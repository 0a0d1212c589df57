#include "parallel_for.h"

#include <omp.h>
#include <pthread.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

namespace alignmask {

namespace {

std::atomic<bool> pool_started{false}, pool_lost{false};

void start_pool() {
  if (!pool_started.exchange(true)) pthread_atfork(nullptr, nullptr, [] { pool_lost = true; });
}

}  // namespace

int threads_for(double work, std::int64_t work_per_thread, std::int64_t tasks, int threads) {
  const double most = std::min(work / static_cast<double>(work_per_thread), static_cast<double>(tasks));
  return static_cast<int>(std::clamp<double>(most, 1, std::clamp(threads, 1, kMaxThreads)));
}

void parallel_for(std::int64_t tasks, int threads, void (*body)(void*, std::int64_t, int), void* context) {
  const int workers =
      static_cast<int>(std::clamp<std::int64_t>(std::min(threads, kMaxThreads), 1, std::max<std::int64_t>(tasks, 1)));
  if (workers == 1 || pool_lost) {
    for (std::int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
  start_pool();
#pragma omp parallel for schedule(monotonic : dynamic, 1) num_threads(workers)
  for (std::int64_t task = 0; task < tasks; ++task) body(context, task, omp_get_thread_num());
}

void prefer_large_pages(void* memory, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kLargePage = 2 << 20;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t first = (address + kLargePage - 1) / kLargePage * kLargePage,
                       end = (address + bytes) / kLargePage * kLargePage;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

Scratch::Scratch(std::size_t bytes, bool sparse) : data_(nullptr) {
  constexpr std::size_t kAlignment = 64;
  data_ = std::aligned_alloc(kAlignment, (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment);
  if (!data_) throw std::bad_alloc();
  if (!sparse) prefer_large_pages(data_, bytes);
}

Scratch::~Scratch() { std::free(data_); }

}  // namespace alignmask
