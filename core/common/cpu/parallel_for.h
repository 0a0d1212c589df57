// Work divided among the threads of the process's OpenMP runtime. (Builds for ThreadSanitizer
// define ALIGNMASK_PLAIN_THREADS and get std::thread: the sanitizer knows how that synchronises,
// and nothing of OpenMP.)
#pragma once

#include <cstddef>
#include <cstdint>

namespace alignmask {

/// More threads than this are never used.
constexpr int kMaxThreads = 1024;

/// How many threads a call is worth: at most one per task and per `work_per_thread`, at most
/// `threads`, at least one.
int threads_for(double work, std::int64_t work_per_thread, std::int64_t tasks, int threads);

/// Calls body(context, task, worker) for every task in [0, tasks), each on one of at most `threads`
/// workers; tasks start in ascending order. A worker index is below `threads` and used by one
/// thread at a time. `body` must not throw. In a process forked from one that had several threads,
/// one thread does it all: OpenMP's pool, which another library may have started, does not survive
/// a fork, and waiting for it would never end.
void parallel_for(std::int64_t tasks, int threads,
                  void (*body)(void* context, std::int64_t task, int worker), void* context);

/// Asks for large pages where memory that is not in use yet will be written as a whole: first
/// writes to fresh memory cost a page fault each. Only a hint, which systems may ignore.
void prefer_large_pages(void* memory, std::size_t bytes);

/// Memory for one call, aligned to cache lines, not initialised.
class Scratch {
 public:
  /// `sparse`: only parts of it will be touched. Throws std::bad_alloc.
  explicit Scratch(std::size_t bytes, bool sparse = false);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

}  // namespace alignmask
