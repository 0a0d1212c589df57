// Bugs of the kinds that the sanitizers are there for, as a kernel could have them: ./planted race
// | bounds | overflow
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>

#include "common/cpu/parallel_for.h"

using namespace alignmask;

int main(int argc, char** argv) {
  const std::string bug = argc > 1 ? argv[1] : "";
  if (bug == "race") {  // tasks of two threads add to one sum
    std::int64_t sum = 0;
    parallel_for(
        1000, 2,
        [](void* context, std::int64_t task, int) { *static_cast<std::int64_t*>(context) += task; },
        &sum);
    std::printf("%lld\n", static_cast<long long>(sum));
  } else if (bug == "bounds") {  // one element after a call's memory
    const Scratch scratch(256);
    static_cast<float*>(scratch.data())[64] = 1;
  } else if (bug == "overflow") {
    volatile int largest = std::numeric_limits<int>::max();
    std::printf("%d\n", largest + 1);
  } else {
    std::fprintf(stderr, "unknown bug\n");
  }
  return 0;
}
