// Random candidates and bilinear samples, for scalars and for packs of lanes; host and device.
// Which candidates are chosen hangs on the last bit of a sample, so nothing here may be fused.
#pragma once

#include "common/bilinear.h"
#include "common/target.h"

namespace alignmask::ALIGNMASK_ISA {

/// a · b, rounded by itself: no part of a fused multiply-add. (On the CPU, an option of the
/// compiler sees to that.)
#if defined(__CUDA_ARCH__)
ALIGNMASK_HOST_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
ALIGNMASK_HOST_DEVICE double product(double a, double b) { return __dmul_rn(a, b); }
#else
template <class F, class Size>
ALIGNMASK_HOST_DEVICE F product(F a, Size b) {
  return a * b;
}
#endif

/// What Philox makes of a counter, in the lower halves of lanes of 64 bits; the upper ones hold
/// anything.
template <class Word>
struct RandomWords {
  Word word[4];
};

/// Ten rounds of Philox4x32 for the counter (block, row, 0, 0). `multiply(word, factor)`: product
/// of a lower half and a number of 32 bits.
template <class Word, class Multiply>
ALIGNMASK_HOST_DEVICE RandomWords<Word> random_words(Word block, Word row, long long seed,
                                                     Multiply multiply) {
  unsigned key = static_cast<unsigned>(seed),
           other_key = static_cast<unsigned>(static_cast<unsigned long long>(seed) >> 32);
  RandomWords<Word> x = {{block, row, block ^ block, block ^ block}};
  for (int round = 0; round < 10; ++round) {
    const Word first = multiply(x.word[0], 0xd2511f53u), second = multiply(x.word[2], 0xcd9e8d57u);
    x = {{(second >> 32) ^ x.word[1] ^ key, second, (first >> 32) ^ x.word[3] ^ other_key, first}};
    key += 0x9e3779b9u;
    other_key += 0xbb67ae85u;
  }
  return x;
}

/// The 24 bits of a word that make a coordinate, as a number: exact.
constexpr float kCoordinateStep = 1.0f / (1 << 24);

/// As pixel_position(), rounded alike everywhere.
template <class F, class Size>
ALIGNMASK_HOST_DEVICE F exact_position(F coordinate, Size size) {
  return product(coordinate, size) - 0.5f;
}

/// Bilinear interpolation; `x`, `y`: how far the position is past the top left pixel. Equal values
/// give just that value. (Its derivatives are corner_weights().)
template <class F>
ALIGNMASK_HOST_DEVICE F blend(const Corners<F>& value, F x, F y) {
  const F top = value.top_left + product(x, value.top_right - value.top_left);
  const F bottom = value.bottom_left + product(x, value.bottom_right - value.bottom_left);
  return top + product(y, bottom - top);
}

}  // namespace alignmask::ALIGNMASK_ISA
