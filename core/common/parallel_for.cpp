#include "parallel_for.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace alignmask {

void parallel_for(std::int64_t tasks, int threads, void (*body)(void*, std::int64_t, int), void* context) {
  const int workers = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, tasks)));
  if (workers == 1) {
    for (std::int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(workers)
  for (std::int64_t task = 0; task < tasks; ++task) body(context, task, omp_get_thread_num());
}

Scratch::Scratch(std::size_t bytes) : data_(nullptr) {
  constexpr std::size_t kAlignment = 64;
  data_ = std::aligned_alloc(kAlignment, (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment);
  if (!data_) throw std::bad_alloc();
}

Scratch::~Scratch() { std::free(data_); }

}  // namespace alignmask
