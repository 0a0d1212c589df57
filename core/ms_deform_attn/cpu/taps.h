// Where points fall among the tokens of one (image, head): four taps each, found without a branch.
// A tap outside its level points to a token of zeros (whose gradient is never read), so the loops
// over taps need not know.
#pragma once

#include <cstdint>

#include "ms_deform_attn/formula.h"
#include "points.h"

namespace alignmask::ALIGNMASK_ISA {

/// The taps of one pack of points: top left, top right, bottom left, bottom right. T: what a token
/// holds.
template <class F, class T>
struct Taps {
  alignas(64) const T* token[4][kPointLanes<F>];
  alignas(64) F factor[4][kPointLanes<F>];
};

/// The tokens of any (image, head): where the levels of all points start, and how far their rows
/// are apart.
template <class F, class T>
class TapPlanner {
 public:
  /// `stride`: elements between tokens. The tables lie in `arena`; over a null pointer it only
  /// counts.
  TapPlanner(const MSDeformAttnArgs& args, const PointReader<F>& points, std::int64_t stride,
             ScratchArena& arena)
      : token_(stride * static_cast<std::int64_t>(sizeof(T))) {
    for (std::int64_t** array : {&first_, &row_, &width_, &height_})
      *array = arena.take<std::int64_t>(points.padded());
    columns_ = arena.take<std::int32_t>(points.padded());
    if (!first_) return;
    std::int64_t tokens = 0, i = 0;
    for (const MSDeformAttnLevel& level : args.levels) {
      for (const std::int64_t end = i + points.points_per_level(); i < end; ++i) {
        first_[i] = tokens * token_;
        row_[i] = level.width * token_;
        width_[i] = level.width;
        height_[i] = level.height;
        columns_[i] = static_cast<std::int32_t>(level.width);
      }
      tokens += level.height * level.width;
    }
    for (; i < points.padded(); ++i) columns_[i] = first_[i] = row_[i] = width_[i] = height_[i] = 0;
  }

  /// Plans kLanes points from `i` on, and leaves in `pack` how far they are past their top left
  /// token. `slice`: the first token; `zeros`: the token of taps outside. A NaN position keeps its
  /// NaN; infinity is outside.
  ALIGNMASK_HOST_DEVICE void plan(const PointReader<F>& points, std::int64_t i, const T* slice,
                                  const T* zeros, PointPack<F>* pack, Taps<F, T>* taps) const {
    constexpr int kLanes = kPointLanes<F>;
    using Lanes = PointLanes<F>;
    using Ints = Pack<std::int32_t, kLanes>;
    const Lanes x = pack->x, y = pack->y, zero{};
    const auto inside = (x >= -1) & (x < points.width(i)) & (y >= -1) & (y < points.height(i));
    const Lanes low_x = floor_of(inside ? x : zero), low_y = floor_of(inside ? y : zero);
    pack->x = (inside | (x != x)) ? x - low_x : zero;
    pack->y = (inside | (y != y)) ? y - low_y : zero;
    const Corners<Lanes> factors = attention_tap_weights(pack->x, pack->y, pack->weight);
    store(taps->factor[0], factors.top_left);
    store(taps->factor[1], factors.top_right);
    store(taps->factor[2], factors.bottom_left);
    store(taps->factor[3], factors.bottom_right);

    const Ints left = __builtin_convertvector(low_x, Ints),
               top = __builtin_convertvector(low_y, Ints);
    const Ints token = top * load<Ints>(columns_ + i) + left;
    const Ints in = __builtin_convertvector(inside, Ints), none{};
    // outside: neither is in the level
    const Ints columns[2] = {in ? left : none - 1, in ? left + 1 : none + kMaxInt};
    constexpr int kWide = ALIGNMASK_VECTOR_BYTES / 8 < kLanes ? ALIGNMASK_VECTOR_BYTES / 8 : kLanes;
    for (int lane = 0; lane < kLanes; lane += kWide)
      point_at<kWide>(token, columns, top, i, lane, slice, zeros, taps);
  }

 private:
  static constexpr std::int32_t kMaxInt = (std::int64_t{1} << 31) - 1;

  /// Addresses of the taps of kWide points from lane `lane` on.
  template <int kWide, class Ints>
  ALIGNMASK_HOST_DEVICE void point_at(Ints token, const Ints* columns, Ints top, std::int64_t i,
                                      int lane, const T* slice, const T* zeros,
                                      Taps<F, T>* taps) const {
    using Wide = Pack<std::int64_t, kWide>;
    constexpr int kLanes = kPointLanes<F>;
    const auto part = [&](Ints ints) {
      if constexpr (kWide == kLanes) return ints;
      if constexpr (kWide < kLanes)
        return lane ? upper_half<std::int32_t, kLanes>(ints)
                    : lower_half<std::int32_t, kLanes>(ints);
    };
    const auto wide = [&](Ints ints) { return widen<kWide>(part(ints)); };
    const Wide level = load<Wide>(first_ + i + lane) + reinterpret_cast<std::int64_t>(slice);
    const Wide at = level + widen_times<kWide>(part(token), token_),
               below = at + load<Wide>(row_ + i + lane);
    const Wide nowhere = Wide{} + reinterpret_cast<std::int64_t>(zeros);
    const auto left = wide(columns[0]) > -1,
               right = load<Wide>(width_ + i + lane) > wide(columns[1]);
    const auto above = wide(top) > -1, under = load<Wide>(height_ + i + lane) > wide(top + 1);
    const auto put = [taps, lane](int corner, Wide address) {
      store(reinterpret_cast<std::int64_t*>(taps->token[corner]) + lane, address);
    };
    put(0, above & left ? at : nowhere);
    put(1, above & right ? at + token_ : nowhere);
    put(2, under & left ? below : nowhere);
    put(3, under & right ? below + token_ : nowhere);
  }

  std::int64_t token_;  // bytes, as are first_ and row_; fits 32 bits
  std::int64_t *first_, *row_, *width_, *height_;
  std::int32_t* columns_;  // width_ once more
};

}  // namespace alignmask::ALIGNMASK_ISA
