#include "runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "fiber.h"

namespace simt {

/// Where lanes of a warp meet: one per mask in use. Two phases, because a lane that has read
/// everything may be back before the others have read.
struct Table {
  std::uint32_t mask = 0, arrived = 0;
  const char* operation = nullptr;
  unsigned phase = 0;
  unsigned readers = 0;  // of all phases, that have not yet left
  std::uint64_t value[2][kWarp] = {};
  char order[2] = {};  // addresses for the thread sanitizer

  bool free() const { return !arrived && !readers; }
};

namespace {

constexpr int kTables = 8;

enum class State : std::uint8_t { kReady, kAtBarrier, kAtMeeting, kGone };

struct Thread {
  Fiber fiber;
  unsigned index = 0;
  State state = State::kReady;
};

struct SharedArray {
  const void* tag;
  char* memory;
  std::size_t bytes;
};

/// Threads that can go on, in the order in which they will. Allocates nothing: the thread sanitizer
/// would see it.
class Queue {
 public:
  bool empty() const { return count_ == 0; }
  void clear() { count_ = 0; }
  void push(Thread* thread) { threads_[(first_ + count_++) % kMaxThreads] = thread; }
  Thread* pop() {
    Thread* thread = threads_[first_];
    first_ = (first_ + 1) % kMaxThreads;
    --count_;
    return thread;
  }

 private:
  Thread* threads_[kMaxThreads];
  unsigned first_ = 0, count_ = 0;
};

constexpr int kMostSharedArrays = 32;

// Behind every shared array, in builds without a sanitizer: shows that a kernel wrote there.
#if defined(__SANITIZE_ADDRESS__) || defined(SIMT_THREAD_SANITIZER)
constexpr std::size_t kGuardBytes = 0;
#else
constexpr std::size_t kGuardBytes = 64;
#endif

/// One for the process: launches take turns.
struct Machine {
  std::mutex busy;
  Order order = Order::kAscending;
  unsigned seed = 0;
  bool vector_atomics = false;

  unsigned blocks = 0, threads = 0;
  void (*kernel)(const void*) = nullptr;
  const void* argument = nullptr;

  unsigned block = 0;
  Fiber scheduler;
  std::unique_ptr<Thread[]> thread{new Thread[kMaxThreads]};
  Thread* current = nullptr;
  std::vector<unsigned> turns;  // the order of the block's threads
  Queue ready;
  std::exception_ptr error;

  unsigned at_barrier = 0, barrier_phase = 0;
  int votes[2] = {};
  Table tables[kMaxThreads / kWarp][kTables];
  SharedArray shared[kMostSharedArrays];
  int shared_count = 0;
  char barrier_order[2] = {}, start = 0, end = 0;  // addresses for the thread sanitizer
};

Machine machine;

#if defined(SIMT_THREAD_SANITIZER)
void happens_before(char& address) { __tsan_release(&address); }
void happens_after(char& address) { __tsan_acquire(&address); }
#else
void happens_before(char&) {}
void happens_after(char&) {}
#endif

std::string where() {
  return "block " + std::to_string(machine.block) +
         (machine.current ? ", thread " + std::to_string(machine.current->index) : "") + ": ";
}

std::string who_waits() {
  unsigned count[4] = {};
  for (unsigned i = 0; i < machine.threads; ++i) ++count[static_cast<int>(machine.thread[i].state)];
  std::string text = std::to_string(count[1]) + " threads wait at __syncthreads, " +
                     std::to_string(count[2]) + " at a warp operation, " +
                     std::to_string(count[3]) + " have left the kernel";
  for (auto& warp : machine.tables)
    for (const Table& table : warp)
      if (table.arrived) return text + "; " + table.operation + " misses lanes that its mask names";
  return text;
}

void wake(Thread& thread) {
  thread.state = State::kReady;
  machine.ready.push(&thread);
}

/// Goes on with the next thread that can; with the scheduler if the block is done or stuck.
void leave(bool last) {
  Thread* from = machine.current;
  Fiber* to = &machine.scheduler;
  machine.current = nullptr;
  if (!machine.ready.empty() && !machine.error) {
    machine.current = machine.ready.pop();
    to = &machine.current->fiber;
  }
  from->fiber.switch_to(*to, last);
}

void wait(State state) {
  machine.current->state = state;
  leave(false);
}

void run_thread() {
  Fiber::arrived(machine.scheduler);
  happens_after(machine.start);
  try {
    machine.kernel(machine.argument);
  } catch (...) {
    machine.error = std::current_exception();
  }
  happens_before(machine.end);
  machine.current->state = State::kGone;
  leave(true);
}

/// 0, 1, ..., count - 1 in the chosen order.
void choose_turns(std::vector<unsigned>& turns, unsigned count, unsigned salt) {
  turns.resize(count);
  std::iota(turns.begin(), turns.end(), 0u);
  if (machine.order == Order::kDescending) std::reverse(turns.begin(), turns.end());
  if (machine.order == Order::kShuffled) {
    std::mt19937 generator(machine.seed * 7919 + salt);
    std::shuffle(turns.begin(), turns.end(), generator);
  }
}

#if defined(SIMT_THREAD_SANITIZER)
// Every block gets memory that no thread has touched, else the sanitizer would take the next
// block's use for a race.
constexpr std::size_t kArena = std::size_t{1}
                               << 36;  // of addresses; pages exist from their first use on
char* arena = static_cast<char*>(mmap(nullptr, kArena, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
char* poisoned_memory(std::size_t bytes) {
  char* memory = arena;
  arena += (bytes + 15) / 16 * 16;
  for (volatile char* at = memory; at < memory + bytes; ++at) *at = '\xff';  // memset would be seen
  return memory;
}
void free_memory(char*) {}
#else
char* poisoned_memory(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, bytes + kGuardBytes)) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes + kGuardBytes);
  return static_cast<char*>(memory);
}
void free_memory(char* memory) { std::free(memory); }
#endif

void run_block(unsigned block) {
  Machine& m = machine;
  m.block = block;
  m.at_barrier = m.barrier_phase = 0;
  m.votes[0] = m.votes[1] = 0;
  for (auto& warp : m.tables)
    for (Table& table : warp) table.mask = table.arrived = table.readers = 0;
  struct FreeShared {
    ~FreeShared() {
      while (machine.shared_count > 0) free_memory(machine.shared[--machine.shared_count].memory);
    }
  } free_shared;
  choose_turns(m.turns, m.threads, block + 1);
  m.ready.clear();
  for (unsigned i = 0; i < m.threads; ++i) {
    m.thread[i].index = i;
    m.thread[i].fiber.restart(run_thread);
  }
  for (const unsigned i : m.turns) wake(m.thread[i]);
  m.current = m.ready.pop();
  m.scheduler.switch_to(m.current->fiber);
  if (m.error) std::rethrow_exception(std::exchange(m.error, nullptr));
  for (unsigned i = 0; i < m.threads; ++i)
    if (m.thread[i].state != State::kGone)
      throw Error(where() + "no thread can go on: " + who_waits());
  for (int a = 0; a < m.shared_count; ++a)
    for (std::size_t i = 0; i < kGuardBytes; ++i)
      if (m.shared[a].memory[m.shared[a].bytes + i] != '\xff')
        throw Error(where() + "a shared array of " + std::to_string(m.shared[a].bytes) +
                    " bytes was written behind its end");
}

}  // namespace

void set_order(Order order, unsigned seed) {
  const std::lock_guard<std::mutex> lock(machine.busy);
  machine.order = order;
  machine.seed = seed;
}

void set_vector_atomics(bool has) {
  const std::lock_guard<std::mutex> lock(machine.busy);
  machine.vector_atomics = has;
}

bool has_vector_atomics() { return machine.vector_atomics; }

void launch(unsigned blocks, unsigned threads, void (*kernel)(const void*), const void* argument) {
  const std::lock_guard<std::mutex> lock(machine.busy);
  if (threads == 0 || threads > kMaxThreads || threads % kWarp)
    throw Error("a block of " + std::to_string(threads) +
                " threads: whole warps, up to 1024 threads, are wanted");
  machine.blocks = blocks;
  machine.threads = threads;
  machine.kernel = kernel;
  machine.argument = argument;
  std::vector<unsigned> order;
  choose_turns(order, blocks, 0);
  happens_before(machine.start);
  for (const unsigned block : order) run_block(block);
  happens_after(machine.end);
}

Index thread_index() { return {machine.current->index, 0, 0}; }
Index block_index() { return {machine.block, 0, 0}; }
Index block_size() { return {machine.threads, 1, 1}; }
Index grid_size() { return {machine.blocks, 1, 1}; }

void* shared_memory(const void* tag, std::size_t bytes) {
  std::size_t total = bytes;
  for (int i = 0; i < machine.shared_count; ++i) {
    if (machine.shared[i].tag == tag) return machine.shared[i].memory;
    total += machine.shared[i].bytes;
  }
  if (machine.shared_count == kMostSharedArrays) throw Error(where() + "too many shared arrays");
  if (total > kMaxSharedBytes)
    throw Error(where() + std::to_string(total) + " bytes of shared memory are too many");
  char* memory = poisoned_memory(bytes);
  machine.shared[machine.shared_count++] = {tag, memory, bytes};
  return memory;
}

void check_alignment(const void* pointer, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % bytes)
    throw Error(where() + "an access of " + std::to_string(bytes) +
                " bytes is not aligned to them");
}

int barrier(bool vote) {
  Machine& m = machine;
  const unsigned phase = m.barrier_phase & 1;
  m.votes[phase] += vote;
  happens_before(m.barrier_order[phase]);
  if (++m.at_barrier == m.threads) {
    m.at_barrier = 0;
    ++m.barrier_phase;
    m.votes[m.barrier_phase & 1] = 0;
    for (const unsigned i : m.turns)
      if (m.thread[i].state == State::kAtBarrier) wake(m.thread[i]);
  } else {
    wait(State::kAtBarrier);
  }
  happens_after(m.barrier_order[phase]);
  return m.votes[phase];
}

Meeting::Meeting(const char* operation, std::uint32_t mask, std::uint64_t value,
                 bool orders_memory) {
  Thread& self = *machine.current;
  const unsigned lane = self.index % kWarp, warp = self.index / kWarp;
  if (!(mask >> lane & 1))
    throw Error(where() + operation + " with a mask that lacks the calling lane");
  Table* tables = machine.tables[warp];
  const auto same = [&](const Table& table) { return table.mask == mask && !table.free(); };
  table_ = std::find_if(tables, tables + kTables, same);
  if (table_ == tables + kTables)
    table_ =
        std::find_if(tables, tables + kTables, [](const Table& table) { return table.free(); });
  if (table_ == tables + kTables)
    throw Error(where() + operation + " with one mask more than the runtime can keep");
  Table& table = *table_;
  if (!table.arrived) table.operation = operation;
  if (std::strcmp(table.operation, operation) != 0)
    throw Error(where() + operation + " while other lanes of its mask are at " + table.operation);
  table.mask = mask;
  phase_ = table.phase & 1;
  table.value[phase_][lane] = value;
  table.arrived |= 1u << lane;
  ++table.readers;
  if (orders_memory) happens_before(table.order[phase_]);
  if (table.arrived == mask) {
    table.arrived = 0;
    ++table.phase;
    for (const unsigned i : machine.turns) {
      Thread& other = machine.thread[i];
      if (i / kWarp == warp && (mask >> i % kWarp & 1) && other.state == State::kAtMeeting)
        wake(other);
    }
  } else {
    wait(State::kAtMeeting);
  }
  if (orders_memory) happens_after(table.order[phase_]);
}

Meeting::~Meeting() { --table_->readers; }

std::uint64_t Meeting::value_of(unsigned lane) const {
  if (!(table_->mask >> lane & 1))
    throw Error(where() + "a lane is read that the mask does not name");
  return table_->value[phase_][lane];
}

}  // namespace simt
