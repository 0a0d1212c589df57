// Runs the kernel of planted.cuh.
#pragma once

#include <string>
#include <vector>

#include "planted.cuh"
#include "runtime.h"

namespace alignmask {

template <Bug kBug>
void call_planted(const void* params) {
  planted<kBug>(*static_cast<const PlantedParams*>(params));
}

struct PlantedBug {
  const char* name;
  void (*kernel)(const void* params);
};

inline constexpr PlantedBug kPlantedBugs[] = {
    {"none", call_planted<Bug::kNone>},
    {"missing barrier", call_planted<Bug::kMissingBarrier>},
    {"missing __syncwarp", call_planted<Bug::kMissingSyncwarp>},
    {"unchecked tail", call_planted<Bug::kUncheckedTail>},
    {"off-by-one write", call_planted<Bug::kOffByOneWrite>},
    {"off-by-one in shared memory", call_planted<Bug::kSharedOffByOne>},
    {"short shuffle mask", call_planted<Bug::kShortShuffleMask>},
    {"ballot of the departed", call_planted<Bug::kBallotOfTheDeparted>},
    {"divergent barrier", call_planted<Bug::kDivergentBarrier>},
    {"read before write", call_planted<Bug::kReadBeforeWrite>},
    {"misaligned", call_planted<Bug::kMisaligned>},
};

/// `x`, `sums` and `positive` as in PlantedParams. Throws std::invalid_argument for an unknown
/// name.
inline void run_planted(const std::string& name, const float* x, int count, float* sums,
                        int* positive) {
  const PlantedParams params{x, sums, positive, count};
  for (const PlantedBug& bug : kPlantedBugs)
    if (name == bug.name)
      return simt::launch(static_cast<unsigned>(count + kPlantedThreads - 1) / kPlantedThreads,
                          kPlantedThreads, bug.kernel, &params);
  throw std::invalid_argument("no bug is called " + name);
}

}  // namespace alignmask
