// A small kernel, right and with each class of mistake: the tests show that the runtime and the
// sanitizers notice.
#pragma once

#include "common/cuda/ptx.cuh"

namespace alignmask {

enum class Bug {
  kNone,
  kMissingBarrier,       // shared memory of other warps is read too early
  kMissingSyncwarp,      // shared memory of other lanes is read too early
  kUncheckedTail,        // the last block reads behind the end of its input
  kOffByOneWrite,        // the last thread writes behind its output
  kSharedOffByOne,       // the last thread writes behind its shared array
  kShortShuffleMask,     // a shuffle's mask names half of the lanes that take part
  kBallotOfTheDeparted,  // a ballot's mask names lanes that have left
  kDivergentBarrier,     // half of the threads go round the barrier
  kReadBeforeWrite,      // shared memory is read that no thread wrote
  kMisaligned,           // a vector is read from an address that is not a multiple of it
};

struct PlantedParams {
  const float* x;  // [count]
  float* sums;     // [blocks]: sum of each block's share of x
  int* positive;   // [blocks]: how many of them are positive
  int count;
};

constexpr int kPlantedThreads = 128;

template <Bug kBug>
ALIGNMASK_KERNEL(kPlantedThreads, 1)
planted(ALIGNMASK_PARAMS PlantedParams params) {
  ALIGNMASK_SHARED(float, mirrored, kPlantedThreads);
  ALIGNMASK_SHARED(float, partial, kPlantedThreads / kWarp);
  ALIGNMASK_SHARED(int, votes, kPlantedThreads / kWarp);
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const int i = blockIdx.x * kPlantedThreads + thread;
  float x = i < params.count || kBug == Bug::kUncheckedTail ? params.x[i] : 0;
  if (kBug == Bug::kMisaligned) x += load_constant<4>(params.x + 1).word[0] == 0 ? 0 : 0;

  // Each lane takes over its mirror image's number.
  mirrored[thread + (kBug == Bug::kSharedOffByOne && thread == kPlantedThreads - 1)] = x;
  if (kBug != Bug::kMissingSyncwarp) __syncwarp();
  x = mirrored[warp * kWarp + (kWarp - 1 - lane)];

  if (kBug == Bug::kBallotOfTheDeparted && warp == 0 && lane >= 16) return;
  const UInt32 ballot = __ballot_sync(kFullWarp, x > 0);
  const UInt32 mask = kBug == Bug::kShortShuffleMask ? 0x0000ffffu : kFullWarp;
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(mask, x, step);
  if (lane == 0 && !(kBug == Bug::kReadBeforeWrite && warp == 2)) {
    partial[warp] = x;
    votes[warp] = __popc(ballot);
  }

  if (kBug != Bug::kMissingBarrier && !(kBug == Bug::kDivergentBarrier && thread % 2))
    __syncthreads();
  if (thread == 0) {
    float sum = 0;
    int positive = 0;
    for (int w = 0; w < kPlantedThreads / kWarp; ++w) {
      sum += partial[w];
      positive += votes[w];
    }
    params.sums[blockIdx.x + (kBug == Bug::kOffByOneWrite)] = sum;
    params.positive[blockIdx.x] = positive;
  }
}

}  // namespace alignmask
