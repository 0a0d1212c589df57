#include "parallel_for.h"

#if defined(ALIGNMASK_PLAIN_THREADS)
#include <thread>
#include <vector>
#else
#include <omp.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <dirent.h>
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <new>

namespace alignmask {

namespace {

// Threads beyond a few per processor gain nothing, but cost memory, and OpenMP ends the process if
// it cannot start them.
constexpr int kThreadsPerProcessor = 4;

constexpr std::size_t kAlignment = 64;  // of scratch memory: a cache line

std::atomic<bool> pool_lost{false};

#if !defined(_WIN32)  // where nothing forks

std::atomic<bool> pool_may_run{false};

/// Does this process have a single thread? Then OpenMP's pool has not been started. No, where that
/// cannot be known.
bool has_one_thread() {
#if defined(__linux__)
  DIR* threads = opendir("/proc/self/task");
  if (!threads) return false;
  int entries = 0;
  while (readdir(threads)) ++entries;
  closedir(threads);
  return entries == 3;  // beside "." and ".."
#else
  return false;
#endif
}

// From the start of the program: another library may have started the pool.
[[maybe_unused]] const int watching_forks =
    pthread_atfork([] { pool_may_run = !has_one_thread(); }, nullptr,
                   [] { pool_lost = pool_lost || pool_may_run; });

#endif

int most_threads() {
#if defined(ALIGNMASK_PLAIN_THREADS)
  static const int processors = static_cast<int>(std::thread::hardware_concurrency());
#else
  static const int processors = omp_get_num_procs();
#endif
  return std::clamp(kThreadsPerProcessor * processors, 8, kMaxThreads);
}

}  // namespace

int threads_for(double work, std::int64_t work_per_thread, std::int64_t tasks, int threads) {
#if defined(ALIGNMASK_PLAIN_THREADS)
  work_per_thread = 1;  // so that small tests race, too
#endif
  const double most =
      std::min(work / static_cast<double>(work_per_thread), static_cast<double>(tasks));
  return static_cast<int>(std::clamp<double>(most, 1, std::clamp(threads, 1, most_threads())));
}

void parallel_for(std::int64_t tasks, int threads, void (*body)(void*, std::int64_t, int),
                  void* context) {
  const int workers = static_cast<int>(std::clamp<std::int64_t>(
      std::min(threads, most_threads()), 1, std::max<std::int64_t>(tasks, 1)));
  if (workers == 1 || pool_lost) {
    for (std::int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
#if defined(ALIGNMASK_PLAIN_THREADS)
  // Each worker has its share from the start: a common counter would order tasks, and hide their
  // races from the sanitizer.
  std::vector<std::thread> team;
  for (int worker = 0; worker < workers; ++worker)
    team.emplace_back([tasks, workers, body, context, worker] {
      for (std::int64_t task = worker; task < tasks; task += workers) body(context, task, worker);
    });
  for (std::thread& thread : team) thread.join();
#else
#pragma omp parallel for schedule(monotonic : dynamic, 1) num_threads(workers)
  for (std::int64_t task = 0; task < tasks; ++task) body(context, task, omp_get_thread_num());
#endif
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
  const std::size_t lines = (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment;
  // Without exceptions of its own: AddressSanitizer would end the process instead.
  data_ = ::operator new(lines * kAlignment, std::align_val_t{kAlignment}, std::nothrow);
  if (!data_) throw std::bad_alloc();
  if (!sparse) prefer_large_pages(data_, bytes);
}

Scratch::~Scratch() { ::operator delete(data_, std::align_val_t{kAlignment}); }

}  // namespace alignmask
