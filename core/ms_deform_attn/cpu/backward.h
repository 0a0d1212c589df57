// The backward pass on the CPU; see kernels.cpp.
#pragma once

#include <algorithm>

#include "common.h"

namespace alignmask::ALIGNMASK_ISA {
namespace {

constexpr std::int64_t kPrefetchQueriesOfHead = 8;  // how far ahead memory is prefetched

template <class F, int kWidth>
class Backward {
 public:
  explicit Backward(const MSDeformAttnArgs& args)
      : args_(args),
        sizes_(args),
        tables_(args, sizes_.padded_D),
        grad_out_(args.grad_out, sizes_.D, sizes_.padded_D),
        need_value_(args.grad_value.present),
        need_points_(args.grad_locations.present || args.grad_weights.present ||
                     args.grad_reference.present) {}

  void run() {
    for (const TensorView* gradient :
         {&args_.grad_value, &args_.grad_locations, &args_.grad_weights})
      prefer_large_pages(*gradient);
    const std::int64_t tasks = sizes_.B * sizes_.N;
    const int threads = threads_for(2 * sizes_.work, kWorkPerThread,
                                    std::max<std::int64_t>(tasks, 1), args_.threads);
    ScratchArena worker(nullptr);
    cut(worker);
    const Scratch workers(static_cast<std::size_t>(worker.bytes() * threads));
    workers_ = static_cast<unsigned char*>(workers.data());
    worker_bytes_ = worker.bytes();
    const std::int64_t numbers =
        args_.grad_reference.present ? tasks * sizes_.Q * tables_.points.levels() * 2 : 0;
    const Scratch references(static_cast<std::size_t>(numbers) * sizeof(F));
    references_ = static_cast<F*>(references.data());
    parallel_for(tasks, threads, own_head, this);
    if (args_.grad_reference.present) parallel_for(sizes_.B * sizes_.Q, threads, add_heads, this);
  }

 private:
  using Channels = ChannelPacks<F, kWidth>;

  struct Worker {
    PointRow<F> row;
    PointPack<F>* packs;  // of all points
    Taps<F, F>* taps;
    F* dots;      // [padded points, 4]: <gradient of the output, value> at a point's taps
    F* grad_out;  // [padded D]
    // [S + 1, padded D]; the last token is the one that taps outside a level use
    F *value, *grad_value;
  };

  Worker cut(ScratchArena& arena) const {
    Worker worker;
    worker.row = tables_.points.cut_row(arena);
    worker.taps = arena.take<Taps<F, F>>(tables_.points.padded() / kPointLanes<F>);
    worker.packs = arena.take<PointPack<F>>(tables_.points.padded() / kPointLanes<F>);
    worker.dots = arena.take<F>(4 * tables_.points.padded());
    worker.grad_out = arena.take<F>(sizes_.padded_D);
    worker.value = arena.take<F>((sizes_.S + 1) * sizes_.padded_D);
    worker.grad_value = arena.take<F>((sizes_.S + 1) * sizes_.padded_D);
    return worker;
  }

  static void own_head(void* context, std::int64_t task, int worker_index) {
    const Backward& self = *static_cast<const Backward*>(context);
    const Sizes<kWidth>& sizes = self.sizes_;
    ScratchArena arena(self.workers_ + worker_index * self.worker_bytes_);
    const Worker worker = self.cut(arena);
    const std::int64_t b = task / sizes.N, n = task % sizes.N, slice = sizes.S * sizes.padded_D;
    if (self.need_points_) {
      pack(self.args_.value, b, n, sizes.padded_D, worker.value);
      std::fill_n(worker.value + slice, sizes.padded_D, F(0));
    }
    if (self.need_value_) std::fill_n(worker.grad_value, slice + sizes.padded_D, F(0));
    std::fill_n(worker.grad_out, sizes.padded_D, F(0));
    std::fill_n(worker.dots, 4 * self.tables_.points.padded(), F(0));
    // copies, which no store can change: they stay in registers
    const PointReader<F> points = self.tables_.points;
    const TapPlanner<F, F> tokens = self.tables_.tokens;
    for (std::int64_t q = 0; q < sizes.Q; ++q) {
      if (q + kPrefetchQueriesOfHead < sizes.Q) {
        points.prefetch(b, q + kPrefetchQueriesOfHead, n);
        self.grad_out_.prefetch(b, q + kPrefetchQueriesOfHead, n);
      }
      self.query(b, q, n, points, tokens, worker);
    }
    if (self.need_value_)
      copy_out(worker.grad_value, sizes.padded_D, tokens_of(self.args_.grad_value, b, n));
  }

  ALIGNMASK_HOST_DEVICE void query(std::int64_t b, std::int64_t q, std::int64_t n,
                                   const PointReader<F>& points, const TapPlanner<F, F>& tokens,
                                   const Worker& worker) const {
    constexpr int kLanes = kPointLanes<F>;
    points.start_query(b, q, worker.row);
    const auto head = points.start_head(b, q, n, worker.row);
    for (std::int64_t i = 0; i < points.padded(); i += kLanes) {
      worker.packs[i / kLanes] = points.pack(head, i, worker.row);
      tokens.plan(points, i, worker.value, worker.value + sizes_.S * sizes_.padded_D,
                  worker.packs + i / kLanes, worker.taps + i / kLanes);
    }
    grad_out_.load(b, q, n, worker.grad_out);
    const F* const grad_out = grad_out_.place(b, q, n, worker.grad_out);
    if (sizes_.padded_D == kWidth) {
      take_taps(points.count(), worker, Channels::from(grad_out), 0);
    } else {
      for (std::int64_t channel = 0; channel < sizes_.padded_D; channel += kWidth)
        take_taps(points.count(), worker, Channels::from(grad_out + channel), channel);
    }
    if (!need_points_) return;
    finish_points(points, worker);
    if (args_.grad_reference.present)
      sum_reference(worker.row, references_ + reference_index(b, q, n, 0));
    points.write_gradients(b, q, n, worker.row);
  }

  ALIGNMASK_HOST_DEVICE void take_taps(std::int64_t points, const Worker& worker,
                                       const Channels& gradient, std::int64_t channel) const {
    constexpr int kLanes = kPointLanes<F>;
    const Taps<F, F>* taps = worker.taps;
    F* dots = worker.dots;
    for (; points > 0; points -= kLanes, ++taps, dots += 4 * kLanes) {
      const int count = points < kLanes ? static_cast<int>(points) : kLanes;
      if (need_points_) {
        for (int p = 0; p < count; ++p) {
          auto sums =
              sums_of_lanes<F, Channels::kLanes>(gradient.times(taps->token[0][p] + channel),
                                                 gradient.times(taps->token[1][p] + channel),
                                                 gradient.times(taps->token[2][p] + channel),
                                                 gradient.times(taps->token[3][p] + channel));
          if (channel > 0) sums += load<Pack<F, 4>>(dots + 4 * p);
          store(dots + 4 * p, sums);
        }
      }
      if (need_value_) {
        const std::int64_t shift = worker.grad_value - worker.value + channel;
        for (int p = 0; p < count; ++p)
          for (int corner = 0; corner < 4; ++corner)
            gradient.add_to(taps->factor[corner][p],
                            const_cast<F*>(taps->token[corner][p]) + shift);
      }
    }
  }

  /// From the dots to the gradients of the points.
  ALIGNMASK_HOST_DEVICE static void finish_points(const PointReader<F>& points,
                                                  const Worker& worker) {
    using Lanes = PointLanes<F>;
    constexpr int kLanes = kPointLanes<F>;
    const PointRow<F>& row = worker.row;
    const F* dots = worker.dots;
    for (std::int64_t i = 0; i < points.padded(); i += kLanes) {
      Lanes even[2], odd[2];
      for (int half = 0; half < 2; ++half, dots += 2 * kLanes)
        split_pairs(load<Lanes>(dots), load<Lanes>(dots + kLanes), &even[half], &odd[half]);
      Corners<Lanes> corners;
      split_pairs(even[0], even[1], &corners.top_left, &corners.bottom_left);
      split_pairs(odd[0], odd[1], &corners.top_right, &corners.bottom_right);
      const PointPack<F>& pack = worker.packs[i / kLanes];
      const auto gradient = point_gradient(corners, pack.x, pack.y, pack.weight, points.scale_x(i),
                                           points.scale_y(i));
      store(row.grad_x + i, gradient.location_x);
      store(row.grad_y + i, gradient.location_y);
      store(row.grad_weight + i, gradient.weight);
    }
    points.zero_empty_levels(row);
  }

  /// A head's part of the gradient of the reference points, in pixels.
  void sum_reference(const PointRow<F>& row, F* to) const {
    const F *x = row.grad_x, *y = row.grad_y;
    for (std::int64_t l = 0; l < tables_.points.levels(); ++l, to += 2) {
      to[0] = to[1] = 0;
      for (std::int64_t p = 0; p < tables_.points.points_per_level(); ++p) {
        to[0] += *x++;
        to[1] += *y++;
      }
    }
  }

  std::int64_t reference_index(std::int64_t b, std::int64_t q, std::int64_t n,
                               std::int64_t l) const {
    return (((b * sizes_.N + n) * sizes_.Q + q) * tables_.points.levels() + l) * 2;
  }

  static void add_heads(void* context, std::int64_t task, int) {
    const Backward& self = *static_cast<const Backward*>(context);
    const std::int64_t b = task / self.sizes_.Q, q = task % self.sizes_.Q;
    const TensorView& target = self.args_.grad_reference;
    const std::int64_t* stride = target.strides;
    for (std::int64_t l = 0; l < self.tables_.points.levels(); ++l) {
      F sum[2] = {0, 0};
      for (std::int64_t n = 0; n < self.sizes_.N; ++n)
        for (int axis = 0; axis < 2; ++axis)
          sum[axis] += self.references_[self.reference_index(b, q, n, l) + axis];
      const MSDeformAttnLevel& level = self.args_.levels[static_cast<std::size_t>(l)];
      sum[0] *= static_cast<F>(level.width);
      sum[1] *= static_cast<F>(level.height);
      copy_out(
          sum, 0,
          StridedRows{&target, b * stride[0] + q * stride[1] + l * stride[2], 1, 2, 0, stride[3]});
    }
  }

  const MSDeformAttnArgs& args_;
  Sizes<kWidth> sizes_;
  Tables<F, F> tables_;
  ChannelRows<F> grad_out_;
  bool need_value_, need_points_;
  unsigned char* workers_ = nullptr;
  std::int64_t worker_bytes_ = 0;
  // [B, N, Q, L, 2]: gradient of the reference points by heads, in pixels
  F* references_ = nullptr;
};

}  // namespace
}  // namespace alignmask::ALIGNMASK_ISA
