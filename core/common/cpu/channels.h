// A fixed number of channels held in vector registers.
#pragma once

#include "common/half.h"
#include "common/target.h"
#include "simd.h"

namespace alignmask::ALIGNMASK_ISA {

/// Lanes of F from memory of F.
template <class F, int kLanes>
ALIGNMASK_HOST_DEVICE Pack<F, kLanes> load_lanes(const F* memory) {
  return load<Pack<F, kLanes>>(memory);
}

/// Lanes of float from half precision.
template <class F, int kLanes>
ALIGNMASK_HOST_DEVICE Pack<float, kLanes> load_lanes(const BFloat16* memory) {
  using Bits = Pack<std::uint32_t, kLanes>;
  const Bits bits = __builtin_convertvector(load<Pack<std::uint16_t, kLanes>>(&memory->bits), Bits)
                    << 16;
  return reinterpret_cast<Pack<float, kLanes>>(bits);
}
template <class F, int kLanes>
ALIGNMASK_HOST_DEVICE Pack<float, kLanes> load_lanes(const Half* memory) {
#if defined(__AVX512F__)
  if constexpr (kLanes == 16)
    return reinterpret_cast<Pack<float, kLanes>>(_mm512_cvtph_ps(load<__m256i>(&memory->bits)));
#endif
#if defined(__F16C__)
  if constexpr (kLanes == 8)
    return reinterpret_cast<Pack<float, kLanes>>(_mm256_cvtph_ps(load<__m128i>(&memory->bits)));
#endif
  using Bits = Pack<std::uint32_t, kLanes>;  // as to_float(), lane by lane
  const Bits half = __builtin_convertvector(load<Pack<std::uint16_t, kLanes>>(&memory->bits), Bits);
  const Bits rest = (half & 0x7fffu) << 13;
  const auto scaled = reinterpret_cast<Pack<float, kLanes>>(rest) *
                      bit_cast<float>(std::uint32_t{(127 + 112) << 23});
  const Bits magnitude =
      rest >= (0x7c00u << 13) ? rest | 0x7f800000u : reinterpret_cast<Bits>(scaled);
  return reinterpret_cast<Pack<float, kLanes>>((half & 0x8000u) << 16 | magnitude);
}

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
  static ALIGNMASK_HOST_DEVICE ChannelPacks from(const F* memory) {
    ChannelPacks channels;
    for (int i = 0; i < kPacks; ++i) channels.pack[i] = load<Lanes>(memory + i * kLanes);
    return channels;
  }
  ALIGNMASK_HOST_DEVICE void to(F* memory) const {
    for (int i = 0; i < kPacks; ++i) store(memory + i * kLanes, pack[i]);
  }
  ALIGNMASK_HOST_DEVICE void add(const ChannelPacks& other) {
    for (int i = 0; i < kPacks; ++i) pack[i] += other.pack[i];
  }
  /// this += factor · memory, which may hold half precision
  template <class T>
  ALIGNMASK_HOST_DEVICE void add(F factor, const T* memory) {
    for (int i = 0; i < kPacks; ++i) pack[i] += factor * load_lanes<F, kLanes>(memory + i * kLanes);
  }
  /// memory += factor · this
  ALIGNMASK_HOST_DEVICE void add_to(F factor, F* memory) const {
    for (int i = 0; i < kPacks; ++i)
      store(memory + i * kLanes, load<Lanes>(memory + i * kLanes) + factor * pack[i]);
  }
  /// Products of the channels with those in memory; their sum is that of the lanes.
  ALIGNMASK_HOST_DEVICE Lanes times(const F* memory) const {
    Lanes sum = pack[0] * load<Lanes>(memory);
    for (int i = 1; i < kPacks; ++i) sum += pack[i] * load<Lanes>(memory + i * kLanes);
    return sum;
  }
};

}  // namespace alignmask::ALIGNMASK_ISA
