// A CUDA grid on the host: one fiber per thread of a block, blocks one after another.
//
// Stricter than a GPU, so that mistakes show: shared memory starts as NaN in every block, and no
// thread may write behind its end; the threads' order can be turned round or shuffled, which brings
// a missing barrier to light; every thread of a block must reach every barrier, every lane that a
// mask names must reach the warp operation, and a lane can only be read if the mask names it. Under
// the thread sanitizer, only barriers order memory: shuffles and ballots do not. Under the address
// sanitizer, tensors and shared arrays end where they end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace simt {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kMaxSharedBytes = 48 << 10;  // what every GPU grants without being asked

/// What a kernel must not do. The launch throws it; the threads of the block are abandoned where
/// they are.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Index {
  unsigned x, y, z;
};

enum class Order { kAscending, kDescending, kShuffled };

/// The order in which blocks, and the threads of a block, take turns in launches from now on.
void set_order(Order order, unsigned seed = 0);

/// Shall kernels use the instructions that add several floats at once, as from sm_90 on?
void set_vector_atomics(bool has);
bool has_vector_atomics();

/// Runs kernel(argument) in every thread of `blocks` blocks of `threads`.
void launch(unsigned blocks, unsigned threads, void (*kernel)(const void* argument),
            const void* argument);

// ---- what threads see of it

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();

/// Memory of the block, `bytes` long, one piece per `tag`.
void* shared_memory(const void* tag, std::size_t bytes);

/// Throws unless `pointer` is a multiple of `bytes`.
void check_alignment(const void* pointer, std::size_t bytes);

/// Waits for all threads of the block; returns how many of them came with true.
int barrier(bool vote);

/// Waits for the lanes of `mask`. Then each may look at what the others brought.
class Meeting {
 public:
  Meeting(const char* operation, std::uint32_t mask, std::uint64_t value,
          bool orders_memory = false);
  ~Meeting();
  Meeting(const Meeting&) = delete;
  Meeting& operator=(const Meeting&) = delete;
  std::uint64_t value_of(unsigned lane) const;

 private:
  struct Table* table_;
  unsigned phase_;
};

}  // namespace simt
