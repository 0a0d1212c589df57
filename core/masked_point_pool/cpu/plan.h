// What the CPU passes sweep over: for every image its points in the order of the feature rows they
// fall on, each with the instances whose mask it hits. Points that hit none are left out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/arena.h"
#include "common/cpu/bits.h"
#include "common/cpu/instances.h"
#include "common/cpu/parallel_for.h"
#include "masked_point_pool/formula.h"
#include "masked_point_pool/masked_point_pool.h"

namespace alignmask::ALIGNMASK_ISA {

constexpr std::int64_t kChunkPoints = 2048;  // sampled by one task

template <class F>
struct Hit {
  std::int32_t slot;  ///< t · M + m, m counting the image's instances
  F value;            ///< sample of the mask
};

template <class F>
struct PlannedPoint {
  F x_part, y_part;    ///< how far it is past the pixel (x, y) of the features
  std::int32_t x, y;   ///< from -1 on; x is -2 where the point is off the features
  std::int32_t first;  ///< of its hits in those of its chunk
  std::int32_t hits;   ///< how many
};

/// The box around a mask's set pixels. Most points miss most boxes, and then the mask need not be
/// read.
struct MaskBox {
  std::int64_t first_row = 0, end_row = 0, first_column = 0, end_column = 0;

  /// May one of the four pixels around a point, (x, y) at its top left, be set?
  bool touches(long long x, long long y) const {
    return y + 1 >= first_row && y < end_row && x + 1 >= first_column && x < end_column;
  }
};

inline MaskBox box_of(const TensorView& masks, std::int64_t g) {
  MaskBox box;
  box.first_column = masks.shape[2];
  const std::int64_t width = masks.shape[2], step = masks.strides[2];
  for (std::int64_t y = 0; y < masks.shape[1]; ++y) {
    const auto* row =
        static_cast<const std::uint8_t*>(masks.data) + g * masks.strides[0] + y * masks.strides[1];
    std::int64_t first = 0, end = width;
    if (step == 1)  // whole words at a time over what is empty
      while (first + kWordBits <= width && !nonzero_word(row + first)) first += kWordBits;
    while (first < width && !row[first * step]) ++first;
    if (first == width) continue;
    if (step == 1)
      while (end - kWordBits > first && !nonzero_word(row + end - kWordBits)) end -= kWordBits;
    while (!row[(end - 1) * step]) --end;
    if (box.end_row == 0) box.first_row = y;
    box.end_row = y + 1;
    box.first_column = std::min(box.first_column, first);
    box.end_column = std::max(box.end_column, end);
  }
  return box;
}

template <class F>
class Plan {
 public:
  Plan(const MaskedPointPoolArgs& args, int threads)
      : args_(args),
        T_(args.points.shape[1]),
        K_(args.points.shape[2]),
        H_(args.features.shape[2]),
        W_(args.features.shape[3]),
        chunks_((T_ * K_ + kChunkPoints - 1) / kChunkPoints),
        instances_(args.owner, args.features.shape[0]),
        memory_(static_cast<std::size_t>(cut(nullptr))),
        // Room for every pair of a point and an instance; untouched pages cost nothing.
        hit_memory_(
            static_cast<std::size_t>(args.owner.shape[0] * chunks_ * kChunkPoints) * sizeof(Hit<F>),
            true),
        hits_(static_cast<Hit<F>*>(hit_memory_.data())) {
    cut(memory_.data());
    const std::int64_t B = args.features.shape[0];
    parallel_for(B, threads, sort_points, this);
    parallel_for(args.owner.shape[0], threads, find_box, this);
    parallel_for(B * chunks_, threads, sample_masks, this);
  }

  const InstancesOfImages& instances() const { return instances_; }

  /// Calls visit(point, its first hit, the end of its hits) for the points of an image that hit an
  /// instance, row after row of the features.
  template <class Visit>
  ALIGNMASK_HOST_DEVICE void sweep(std::int64_t b, Visit visit) const {
    for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const PlannedPoint<F>* point = planned_ + (b * chunks_ + chunk) * kChunkPoints;
      const Hit<F>* hits = hits_of(b, chunk);
      for (const PlannedPoint<F>* end = point + counts_[b * chunks_ + chunk]; point < end; ++point)
        visit(*point, hits + point->first, hits + point->first + point->hits);
    }
  }

 private:
  /// Cuts the memory into the plan's arrays; returns the bytes.
  std::int64_t cut(void* memory) {
    ScratchArena arena(memory);
    const std::int64_t B = args_.features.shape[0], points = T_ * K_;
    order_ = arena.take<std::int32_t>(B * points);
    other_order_ = arena.take<std::int32_t>(B * points);
    rows_ = arena.take<std::int32_t>(B * points);
    columns_ = arena.take<std::int32_t>(B * points);
    first_ = arena.take<std::int64_t>(B * buckets());
    counts_ = arena.take<std::int64_t>(B * chunks_);
    boxes_ = arena.take<MaskBox>(args_.owner.shape[0]);
    planned_ = arena.take<PlannedPoint<F>>(B * chunks_ * kChunkPoints);
    return arena.bytes();
  }

  Hit<F>* hits_of(std::int64_t b, std::int64_t chunk) const {
    const std::int64_t before = instances_.first(b) * chunks_;
    return hits_ + (before + chunk * instances_.count(b)) * kChunkPoints;
  }

  std::int64_t buckets() const { return std::max(H_, W_) + 2; }

  PointOnMap<F> point_on(std::int64_t b, std::int64_t index, std::int64_t width,
                         std::int64_t height) const {
    const TensorView& points = args_.points;
    const std::int64_t at =
        b * points.strides[0] + index / K_ * points.strides[1] + index % K_ * points.strides[2];
    F xy[2];
    copy_in({&points, at, 1, 2, 0, points.strides[3]}, xy, 0);
    return PointOnMap<F>::of(xy[0], xy[1], width, height);
  }

  static void sort_points(void* context, std::int64_t b, int) {
    const Plan& self = *static_cast<const Plan*>(context);
    const std::int64_t points = self.T_ * self.K_;
    if (self.instances_.count(b) == 0) return;
    std::int32_t *order = self.order_ + b * points, *other = self.other_order_ + b * points,
                 *rows = self.rows_ + b * points, *columns = self.columns_ + b * points;
    std::int64_t* first = self.first_ + b * self.buckets();
    for (std::int64_t k = 0; k < points; ++k) {
      const PointOnMap<F> point = self.point_on(b, k, self.W_, self.H_);
      other[k] = static_cast<std::int32_t>(k);
      rows[k] = static_cast<std::int32_t>(point.y + 1);
      columns[k] = static_cast<std::int32_t>(point.x + 1);
    }
    self.sort_stably(other, columns, self.W_ + 1, first, order);
    std::swap_ranges(order, order + points, other);
    self.sort_stably(other, rows, self.H_ + 1, first, order);
  }

  /// to = from in ascending order of keys, which are below `buckets`.
  void sort_stably(const std::int32_t* from, const std::int32_t* keys, std::int64_t buckets,
                   std::int64_t* first, std::int32_t* to) const {
    const std::int64_t points = T_ * K_;
    std::fill_n(first, buckets + 1, std::int64_t{0});
    for (std::int64_t k = 0; k < points; ++k) ++first[keys[k] + 1];
    for (std::int64_t i = 0; i < buckets; ++i) first[i + 1] += first[i];
    for (std::int64_t i = 0; i < points; ++i) to[first[keys[from[i]]]++] = from[i];
  }

  static void find_box(void* context, std::int64_t g, int) {
    const Plan& self = *static_cast<const Plan*>(context);
    self.boxes_[g] = box_of(self.args_.masks, g);
  }

  static void sample_masks(void* context, std::int64_t task, int) {
    const Plan& self = *static_cast<const Plan*>(context);
    const std::int64_t b = task / self.chunks_, chunk = task % self.chunks_,
                       M = self.instances_.count(b);
    self.counts_[task] = 0;
    if (M == 0) return;
    const TensorView& masks = self.args_.masks;
    const std::int64_t height = masks.shape[1], width = masks.shape[2], row = masks.strides[1],
                       column = masks.strides[2], points = self.T_ * self.K_;
    Hit<F>*const hits = self.hits_of(b, chunk), *hit = hits;
    PlannedPoint<F>* planned = self.planned_ + task * kChunkPoints;
    const std::int64_t end = std::min(points, (chunk + 1) * kChunkPoints);
    for (std::int64_t i = chunk * kChunkPoints; i < end; ++i) {
      const std::int64_t k = self.order_[b * points + i];
      const PointOnMap<F> on_mask = self.point_on(b, k, width, height);
      if (!on_mask.inside) continue;
      planned->first = static_cast<std::int32_t>(hit - hits);
      const bool is_nan = on_mask.x_part != on_mask.x_part;
      for (std::int64_t m = 0; m < M; ++m) {
        const std::int64_t g = self.instances_.of(b)[m];
        if (!is_nan && !self.boxes_[g].touches(on_mask.x, on_mask.y)) continue;
        const auto* mask = static_cast<const std::uint8_t*>(masks.data) + g * masks.strides[0];
        const F value = sample_mask(on_mask, width, height, [&](std::int64_t x, std::int64_t y) {
          return mask[y * row + x * column] != 0;
        });
        if (value != 0) *hit++ = {static_cast<std::int32_t>(k / self.K_ * M + m), value};
      }
      planned->hits = static_cast<std::int32_t>(hit - hits) - planned->first;
      if (planned->hits == 0) continue;
      const PointOnMap<F> on_features = self.point_on(b, k, self.W_, self.H_);
      planned->x = on_features.inside ? static_cast<std::int32_t>(on_features.x) : -2;
      planned->y = static_cast<std::int32_t>(on_features.y);
      planned->x_part = on_features.x_part;
      planned->y_part = on_features.y_part;
      ++planned;
    }
    self.counts_[task] = planned - (self.planned_ + task * kChunkPoints);
  }

  const MaskedPointPoolArgs& args_;
  std::int64_t T_, K_, H_, W_, chunks_;
  InstancesOfImages instances_;
  Scratch memory_, hit_memory_;
  Hit<F>* hits_;
  std::int32_t *order_, *other_order_, *rows_, *columns_;
  std::int64_t *first_, *counts_;
  MaskBox* boxes_;
  PlannedPoint<F>* planned_;
};

}  // namespace alignmask::ALIGNMASK_ISA
