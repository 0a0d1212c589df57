// A fixed number of channels held in vector registers.
#pragma once

#include "simd.h"
#include "target.h"

namespace alignmask::ALIGNMASK_ISA {

template <class F, int kWidth>
struct ChannelPacks {
  static constexpr int kMost = ALIGNMASK_VECTOR_BYTES / static_cast<int>(sizeof(F));
  static constexpr int kLanes = kWidth < kMost ? kWidth : kMost;
  static constexpr int kPacks = kWidth / kLanes;
  using Lanes = Pack<F, kLanes>;
  Lanes pack[kPacks];

  static ALIGNMASK_HOST_DEVICE ChannelPacks zeros() {
    ChannelPacks channels;
    for (int i = 0; i < kPacks; ++i) channels.pack[i] = Lanes{};
    return channels;
  }
  /// this += factor · memory
  ALIGNMASK_HOST_DEVICE void add(F factor, const F* memory) {
    for (int i = 0; i < kPacks; ++i) pack[i] += factor * load<Lanes>(memory + i * kLanes);
  }
  /// memory += factor · this
  ALIGNMASK_HOST_DEVICE void add_to(F factor, F* memory) const {
    for (int i = 0; i < kPacks; ++i) store(memory + i * kLanes, load<Lanes>(memory + i * kLanes) + factor * pack[i]);
  }
};

}  // namespace alignmask::ALIGNMASK_ISA
