// The forward pass on the CPU; see kernels.cpp.
#pragma once

#include <algorithm>
#include <cstring>

#include "common.h"

namespace alignmask::ALIGNMASK_ISA {
namespace {

// values copied at a time, if they cannot be used in place
constexpr std::int64_t kPackedBytes = 16 * 1024 * 1024;
constexpr std::int64_t kPrefetchQueries = 2;  // how far ahead memory is prefetched

/// T: what value holds where it is sampled.
template <class F, class T, int kWidth>
class Forward {
 public:
  using Channels = ChannelPacks<F, kWidth>;
  static constexpr bool kFourChains = Channels::kPacks <= 2;  // else there are too few registers

  Forward(const MSDeformAttnArgs& args, bool in_place)
      : args_(args),
        in_place_(in_place),
        sizes_(args),
        tables_(args, in_place ? args.value.strides[1] : sizes_.padded_D),
        out_(args.out, sizes_.D, sizes_.padded_D) {}

  void run() {
    if (sizes_.B * sizes_.N * sizes_.Q == 0) return;
    prefer_large_pages(args_.out);
    threads_ = threads_for(sizes_.work, kWorkPerThread, sizes_.B * sizes_.Q, args_.threads);
    ScratchArena worker(nullptr);
    cut(worker);
    const Scratch workers(static_cast<std::size_t>(worker.bytes() * threads_)),
        zeros(static_cast<std::size_t>(sizes_.padded_D) * sizeof(T));
    workers_ = static_cast<unsigned char*>(workers.data());
    worker_bytes_ = worker.bytes();
    zeros_ = static_cast<const T*>(zeros.data());
    std::memset(zeros.data(), 0, static_cast<std::size_t>(sizes_.padded_D) * sizeof(T));

    if (in_place_) return sample(0, sizes_.B, 0, sizes_.N);
    const std::int64_t slice = sizes_.S * sizes_.padded_D,
                       slice_bytes = slice * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t heads = std::clamp<std::int64_t>(
        kPackedBytes / std::max<std::int64_t>(slice_bytes, 1), 1, sizes_.N);
    const Scratch packed(static_cast<std::size_t>(heads * slice_bytes));
    packed_ = static_cast<T*>(packed.data());
    for (std::int64_t b = 0; b < sizes_.B; ++b)
      for (std::int64_t n = 0; n < sizes_.N; n += heads)
        sample(b, b + 1, n, std::min(n + heads, sizes_.N));
  }

 private:
  struct Worker {
    PointRow<F> row;
    Taps<F, T>* taps;
    F* out;
  };

  Worker cut(ScratchArena& arena) const {
    Worker worker;
    worker.row = tables_.points.cut_row(arena);
    worker.taps = arena.take<Taps<F, T>>(tables_.points.padded() / kPointLanes<F>);
    worker.out = arena.take<F>(sizes_.padded_D);
    return worker;
  }

  /// Images [b0, b1), heads [n0, n1), all queries.
  void sample(std::int64_t b0, std::int64_t b1, std::int64_t n0, std::int64_t n1) {
    b0_ = b0;
    n0_ = n0;
    n1_ = n1;
    if (!in_place_) parallel_for(n1 - n0, threads_, pack_head, this);
    // Several shares per thread, so that threads of unequal speed end together.
    shares_ = std::clamp<std::int64_t>(8 * threads_ / (b1 - b0), 1, sizes_.Q);
    parallel_for((b1 - b0) * shares_, threads_, sample_share, this);
  }

  static void pack_head(void* context, std::int64_t task, int) {
    const Forward& self = *static_cast<const Forward*>(context);
    if constexpr (sizeof(T) == sizeof(F))
      pack(self.args_.value, self.b0_, self.n0_ + task, self.sizes_.padded_D,
           self.packed_ + task * self.sizes_.S * self.sizes_.padded_D);
  }

  static void sample_share(void* context, std::int64_t task, int worker_index) {
    const Forward& self = *static_cast<const Forward*>(context);
    ScratchArena arena(self.workers_ + worker_index * self.worker_bytes_);
    const Worker worker = self.cut(arena);
    const std::int64_t b = self.b0_ + task / self.shares_, share = task % self.shares_,
                       Q = self.sizes_.Q;
    // copies, which no store can change: they stay in registers
    const PointReader<F> points = self.tables_.points;
    const TapPlanner<F, T> tokens = self.tables_.tokens;
    for (std::int64_t q = Q * share / self.shares_; q < Q * (share + 1) / self.shares_; ++q) {
      if (q + kPrefetchQueries < Q) self.prefetch(b, q + kPrefetchQueries, points);
      points.start_query(b, q, worker.row);
      for (std::int64_t n = self.n0_; n < self.n1_; ++n)
        self.query(b, q, n, points, tokens, worker);
    }
  }

  ALIGNMASK_HOST_DEVICE void prefetch(std::int64_t b, std::int64_t q,
                                      const PointReader<F>& points) const {
    for (std::int64_t n = n0_; n < n1_; ++n) {
      points.prefetch(b, q, n);
      out_.prefetch(b, q, n);
    }
  }

  const T* slice(std::int64_t b, std::int64_t n) const {
    const TensorView& value = args_.value;
    if (in_place_)
      return static_cast<const T*>(value.data) + b * value.strides[0] + n * value.strides[2];
    return packed_ + (n - n0_) * sizes_.S * sizes_.padded_D;
  }

  ALIGNMASK_HOST_DEVICE void query(std::int64_t b, std::int64_t q, std::int64_t n,
                                   const PointReader<F>& points, const TapPlanner<F, T>& tokens,
                                   const Worker& worker) const {
    constexpr int kLanes = kPointLanes<F>;
    const auto head = points.start_head(b, q, n, worker.row);
    const T* const values = slice(b, n);
    for (std::int64_t i = 0; i < points.padded(); i += kLanes) {
      PointPack<F> pack = points.pack(head, i, worker.row);
      tokens.plan(points, i, values, zeros_, &pack, worker.taps + i / kLanes);
    }
    F* const out = out_.place(b, q, n, worker.out);
    if (sizes_.padded_D == kWidth) {
      add_taps(points.count(), worker.taps, 0).to(out);
    } else {
      for (std::int64_t channel = 0; channel < sizes_.padded_D; channel += kWidth)
        add_taps(points.count(), worker.taps, channel).to(out + channel);
    }
    out_.save(b, q, n, out);
  }

  static ALIGNMASK_HOST_DEVICE Channels add_taps(std::int64_t points, const Taps<F, T>* taps,
                                                 std::int64_t channel) {
    constexpr int kLanes = kPointLanes<F>;
    // Several chains of additions hide their latency.
    Channels top_left = Channels::zeros(), top_right = top_left, bottom_left = top_left,
             bottom_right = top_left;
    for (; points > 0; points -= kLanes, ++taps) {
      const int count = points < kLanes ? static_cast<int>(points) : kLanes;
      for (int p = 0; p < count; ++p) {
        top_left.add(taps->factor[0][p], taps->token[0][p] + channel);
        (kFourChains ? top_right : top_left).add(taps->factor[1][p], taps->token[1][p] + channel);
        bottom_left.add(taps->factor[2][p], taps->token[2][p] + channel);
        (kFourChains ? bottom_right : bottom_left)
            .add(taps->factor[3][p], taps->token[3][p] + channel);
      }
    }
    if (kFourChains) {
      top_left.add(top_right);
      bottom_left.add(bottom_right);
    }
    top_left.add(bottom_left);
    return top_left;
  }

  const MSDeformAttnArgs& args_;
  bool in_place_;
  Sizes<kWidth> sizes_;
  Tables<F, T> tables_;
  ChannelRows<F> out_;
  int threads_ = 1;
  unsigned char* workers_ = nullptr;
  std::int64_t worker_bytes_ = 0;
  const T* zeros_ = nullptr;
  T* packed_ = nullptr;                    // [heads, S, padded D]
  std::int64_t b0_ = 0, n0_ = 0, n1_ = 0;  // worked on now
  std::int64_t shares_ = 1;                // of the queries of an image
};

}  // namespace
}  // namespace alignmask::ALIGNMASK_ISA
