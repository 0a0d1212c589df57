// CPU schedule: pack the values of an (image, head), then sample from them; in the backward pass one task owns the
// gradient of one (image, head, level). No two threads ever add to one place, so results do not depend on the number of
// threads.
#include <algorithm>
#include <cstring>

#include "../common/dispatch.h"
#include "../common/parallel_for.h"
#include "ms_deform_attn_offsets.h"
#include "ms_deform_attn_packed.h"

namespace alignmask::ALIGNMASK_ISA {

void ms_deform_attn_forward_cpu(const MSDeformAttnArgs& args);
void ms_deform_attn_backward_cpu(const MSDeformAttnArgs& args);

namespace {

constexpr std::int64_t kWorkPerThread = 100'000;         // multiply-adds below which another thread does not pay
constexpr std::int64_t kPackedBytes = 16 * 1024 * 1024;  // values packed at a time, unless the threads need more

/// kWidth channels in registers.
template <class F, int kWidth>
struct Channels {
  static constexpr int kLanes = std::min<int>(kWidth, ALIGNMASK_VECTOR_BYTES / sizeof(F));
  static constexpr int kPacks = kWidth / kLanes;
  using Lanes = Pack<F, kLanes>;
  Lanes pack[kPacks];

  static ALIGNMASK_HOST_DEVICE Channels zeros() {
    Channels channels;
    for (int i = 0; i < kPacks; ++i) channels.pack[i] = Lanes{};
    return channels;
  }
  static ALIGNMASK_HOST_DEVICE Channels from(const F* memory) {
    Channels channels;
    for (int i = 0; i < kPacks; ++i) channels.pack[i] = load<Lanes>(memory + i * kLanes);
    return channels;
  }
  ALIGNMASK_HOST_DEVICE void to(F* memory) const {
    for (int i = 0; i < kPacks; ++i) store(memory + i * kLanes, pack[i]);
  }
  /// this += factor · memory
  ALIGNMASK_HOST_DEVICE void add(F factor, const F* memory) {
    for (int i = 0; i < kPacks; ++i) pack[i] += factor * load<Lanes>(memory + i * kLanes);
  }
  /// memory += factor · this
  ALIGNMASK_HOST_DEVICE void add_to(F factor, F* memory) const {
    for (int i = 0; i < kPacks; ++i) store(memory + i * kLanes, load<Lanes>(memory + i * kLanes) + factor * pack[i]);
  }
  ALIGNMASK_HOST_DEVICE F dot(const F* memory) const {
    Lanes sum = pack[0] * load<Lanes>(memory);
    for (int i = 1; i < kPacks; ++i) sum += pack[i] * load<Lanes>(memory + i * kLanes);
    return sum_of_lanes<F, kLanes>(sum);
  }
};

/// Heads' channels inside the rows of out or grad_out, [B, Q, N·D].
template <class F, int kWidth>
class ChannelRows {
 public:
  ChannelRows(const TensorView& tensor, std::int64_t channels)
      : tensor_(tensor),
        channels_(channels),
        contiguous_(is_contiguous<F>(tensor, 2)) {}

  Channels<F, kWidth> read(std::int64_t b, std::int64_t q, std::int64_t n, std::int64_t channel,
                           std::int64_t count) const {
    const StridedRows row = rows(b, q, n, channel, count);
    if (contiguous_ && count == kWidth)
      return Channels<F, kWidth>::from(static_cast<const F*>(tensor_.data) + row.offset);
    alignas(64) F buffer[kWidth] = {};
    copy_in(row, buffer, 0);
    return Channels<F, kWidth>::from(buffer);
  }

  void write(std::int64_t b, std::int64_t q, std::int64_t n, std::int64_t channel, std::int64_t count,
             const Channels<F, kWidth>& channels) const {
    const StridedRows row = rows(b, q, n, channel, count);
    if (contiguous_ && count == kWidth) return channels.to(static_cast<F*>(tensor_.data) + row.offset);
    alignas(64) F buffer[kWidth];
    channels.to(buffer);
    copy_out<F>(buffer, 0, row);
  }

 private:
  StridedRows rows(std::int64_t b, std::int64_t q, std::int64_t n, std::int64_t channel, std::int64_t count) const {
    return {&tensor_, b * tensor_.strides[0] + q * tensor_.strides[1] + (n * channels_ + channel) * tensor_.strides[2],
            1,        count,
            0,        tensor_.strides[2]};
  }

  const TensorView& tensor_;
  std::int64_t channels_;
  bool contiguous_;
};

/// Sizes of a call; channels are worked on in blocks of kWidth.
template <class F, int kWidth>
struct Sizes {
  explicit Sizes(const MSDeformAttnArgs& args)
      : B(args.value.shape[0]),
        N(args.value.shape[2]),
        D(args.value.shape[3]),
        Q(args.weights.shape[1]),
        L(args.weights.shape[3]),
        P(args.weights.shape[4]),
        blocks((D + kWidth - 1) / kWidth) {
    const double work = 4.0 * kWidth * B * N * blocks * Q * L * P;  // no integer: it would overflow
    threads = static_cast<int>(std::clamp<double>(work / kWorkPerThread, 1, std::clamp(args.threads, 1, kMaxThreads)));
  }
  std::int64_t B, N, D, Q, L, P, blocks;
  int threads;
};

template <class F>
struct PlannedTaps {
  alignas(64) std::int32_t token[kPoints];
  alignas(64) F factor[4][kPoints];

  PlannedTaps(const Plan<F>& plan, Pack<F, kPoints> weight) {
    const Corners<Pack<F, kPoints>> factors = attention_tap_weights(plan.x, plan.y, weight);
    store(token, plan.token);
    store(factor[0], factors.top_left);
    store(factor[1], factors.top_right);
    store(factor[2], factors.bottom_left);
    store(factor[3], factors.bottom_right);
  }
};

// ---- forward ----

template <class F, int kWidth>
struct Forward {
  const MSDeformAttnArgs& args;
  Sizes<F, kWidth> sizes;
  Points<F> points;
  ChannelRows<F, kWidth> out;
  std::vector<PackedLevel> levels;
  std::int64_t slice_tokens;    // packed tokens of all levels
  std::int64_t tasks;           // per unit: shares of its rows in pack(), of the queries in sample()
  std::int64_t first_unit = 0;  // of those packed now; a unit is one (image, head, block of channels)
  F* packed = nullptr;          // [units packed at a time, slice_tokens, kWidth]
  F* buffers = nullptr;         // [threads, points.buffer_size()]

  explicit Forward(const MSDeformAttnArgs& args)
      : args(args),
        sizes(args),
        points(args.locations, args.weights, sizes.P),
        out(args.out, sizes.D),
        levels(sizes.L),
        slice_tokens(pack_levels(args, true, levels.data())) {}

  struct Unit {
    std::int64_t b, n, channel, channels;
    F* packed;
  };

  Unit unit(std::int64_t index) const {
    const std::int64_t global = first_unit + index, head = global / sizes.blocks,
                       channel = global % sizes.blocks * kWidth;
    return {head / sizes.N, head % sizes.N, channel, std::min<std::int64_t>(kWidth, sizes.D - channel),
            packed + index * slice_tokens * kWidth};
  }

  static void pack(void* context, std::int64_t task, int) {
    const Forward& self = *static_cast<const Forward*>(context);
    const Unit unit = self.unit(task / self.tasks);
    const std::int64_t share = task % self.tasks;
    for (const PackedLevel& level : self.levels) {
      F* to = unit.packed + level.first_packed * kWidth;
      if (share == 0 && !level.empty()) zero_border<kWidth>(level, to);
      pack_rows<kWidth>(self.args.value, level, unit.b, unit.n, unit.channel, unit.channels,
                        level.height * share / self.tasks, level.height * (share + 1) / self.tasks, to);
    }
  }

  static void sample(void* context, std::int64_t task, int worker) {
    const Forward& self = *static_cast<const Forward*>(context);
    const Unit unit = self.unit(task / self.tasks);
    const std::int64_t share = task % self.tasks, Q = self.sizes.Q;
    F* buffer = self.buffers + worker * self.points.buffer_size();
    for (std::int64_t q = Q * share / self.tasks; q < Q * (share + 1) / self.tasks; ++q)
      self.out.write(unit.b, q, unit.n, unit.channel, unit.channels, self.query(unit, q, buffer));
  }

  ALIGNMASK_HOST_DEVICE Channels<F, kWidth> query(const Unit& unit, std::int64_t q, F* buffer) const {
    auto sum = Channels<F, kWidth>::zeros(), sum2 = sum;  // two chains of additions hide their latency
    for (std::int64_t l = 0; l < sizes.L; ++l) {
      const PackedLevel& level = levels[l];
      if (level.empty()) continue;
      const F* slice = unit.packed + level.first_packed * kWidth;
      const auto row = points.read(unit.b, q, unit.n, l, buffer);
      for (std::int64_t p = 0; p < sizes.P; p += kPoints) {
        const PlannedTaps<F> taps(plan_points(level, row.locations + 2 * p), load<Pack<F, kPoints>>(row.weights + p));
        const int count = static_cast<int>(std::min<std::int64_t>(kPoints, sizes.P - p));
        for (int i = 0; i < count; ++i) {
          const F* top = slice + std::int64_t{taps.token[i]} * kWidth;
          const F* bottom = top + level.row * kWidth;
          sum.add(taps.factor[0][i], top);
          sum2.add(taps.factor[1][i], top + kWidth);
          sum.add(taps.factor[2][i], bottom);
          sum2.add(taps.factor[3][i], bottom + kWidth);
        }
      }
    }
    for (int i = 0; i < Channels<F, kWidth>::kPacks; ++i) sum.pack[i] += sum2.pack[i];
    return sum;
  }

  void run() {
    const std::int64_t units = sizes.B * sizes.N * sizes.blocks;
    if (units == 0 || sizes.Q == 0) return;
    const std::int64_t slice_bytes = slice_tokens * kWidth * static_cast<std::int64_t>(sizeof(F));
    const std::int64_t most =
        std::max<std::int64_t>(sizes.threads, kPackedBytes / std::max<std::int64_t>(slice_bytes, 1));
    const std::int64_t waves = (units + most - 1) / most, wave = (units + waves - 1) / waves;
    // Several tasks per thread, so that threads of unequal speed end together.
    tasks = std::clamp<std::int64_t>((4 * sizes.threads + wave - 1) / wave, 1, sizes.Q);

    const Scratch packed_memory(static_cast<std::size_t>(wave * slice_bytes));
    packed = static_cast<F*>(packed_memory.data());
    const Scratch point_memory(static_cast<std::size_t>(sizes.threads * points.buffer_size()) * sizeof(F));
    buffers = static_cast<F*>(point_memory.data());
    std::fill_n(buffers, sizes.threads * points.buffer_size(), F(0));
    for (; first_unit < units; first_unit += wave) {
      const std::int64_t now = std::min(wave, units - first_unit) * tasks;
      parallel_for(now, sizes.threads, pack, this);
      parallel_for(now, sizes.threads, sample, this);
    }
  }
};

// ---- backward ----

template <class F, int kWidth>
struct Backward {
  const MSDeformAttnArgs& args;
  Sizes<F, kWidth> sizes;
  Points<F> points, grad_points;
  ChannelRows<F, kWidth> grad_out;
  std::vector<PackedLevel> levels;
  std::int64_t slice_tokens;  // packed tokens of the longest level
  bool need_value, need_points;
  std::int64_t slice_size, grads_size;  // elements of F in a worker's packed level, and in its gradients of points
  F* scratch = nullptr;                 // [threads, worker_size()]

  explicit Backward(const MSDeformAttnArgs& args)
      : args(args),
        sizes(args),
        points(args.locations, args.weights, sizes.P),
        grad_points(args.grad_locations, args.grad_weights, sizes.P),
        grad_out(args.grad_out, sizes.D),
        levels(sizes.L),
        slice_tokens(pack_levels(args, false, levels.data())),
        need_value(args.grad_value.present),
        need_points(args.grad_locations.present || args.grad_weights.present),
        slice_size(slice_tokens * kWidth),
        // With several blocks of channels, all queries' gradients wait for the last block.
        grads_size(grad_points.buffer_size() * (sizes.blocks > 1 ? std::max<std::int64_t>(sizes.Q, 1) : 1)) {}

  std::int64_t worker_size() const { return 2 * slice_size + points.buffer_size() + grads_size; }

  static void level_task(void* context, std::int64_t task, int worker) {
    const Backward& self = *static_cast<const Backward*>(context);
    const Sizes<F, kWidth>& sizes = self.sizes;
    const std::int64_t l = task % sizes.L, n = task / sizes.L % sizes.N, b = task / sizes.L / sizes.N;
    const PackedLevel& level = self.levels[l];
    F* packed = self.scratch + worker * self.worker_size();
    F* grad_packed = packed + self.slice_size;
    F* buffer = grad_packed + self.slice_size;
    F* grads = buffer + self.points.buffer_size();
    const auto grad_row = [&](std::int64_t q) {
      const bool kept = sizes.blocks > 1;
      if (kept) return self.grad_points.buffer_row(grads + q * self.grad_points.buffer_size());
      return self.grad_points.row(b, q, n, l, grads);
    };
    if (level.empty() || sizes.D == 0) return self.zero_points(b, n, l, grads);
    zero_border<kWidth>(level, packed);
    for (std::int64_t block = 0; block < sizes.blocks; ++block) {
      const std::int64_t channel = block * kWidth, channels = std::min<std::int64_t>(kWidth, sizes.D - channel);
      pack_rows<kWidth>(self.args.value, level, b, n, channel, channels, 0, level.height, packed);
      if (self.need_value)
        std::memset(grad_packed, 0, static_cast<std::size_t>(level.packed_tokens()) * kWidth * sizeof(F));
      for (std::int64_t q = 0; q < sizes.Q; ++q) {
        const auto row = self.points.read(b, q, n, l, buffer);
        const auto gradient = self.grad_out.read(b, q, n, channel, channels);
        self.query(level, packed, grad_packed, row, gradient, self.need_points ? grad_row(q) : row, block > 0);
        if (self.need_points && block == sizes.blocks - 1) self.grad_points.write(b, q, n, l, grad_row(q));
      }
      if (self.need_value) unpack_rows<kWidth>(grad_packed, level, b, n, channel, channels, self.args.grad_value);
    }
  }

  /// Gradients of points that sample nothing.
  void zero_points(std::int64_t b, std::int64_t n, std::int64_t l, F* buffer) const {
    if (!need_points) return;
    std::fill_n(buffer, grad_points.buffer_size(), F(0));
    for (std::int64_t q = 0; q < sizes.Q; ++q) grad_points.write(b, q, n, l, grad_points.buffer_row(buffer));
  }

  ALIGNMASK_HOST_DEVICE void query(const PackedLevel& level, const F* packed, F* grad_packed,
                                   const typename Points<F>::Row& row, const Channels<F, kWidth>& gradient,
                                   const typename Points<F>::Row& grad_row, bool accumulate) const {
    using Lanes = Pack<F, kPoints>;
    for (std::int64_t p = 0; p < sizes.P; p += kPoints) {
      const Plan<F> plan = plan_points(level, row.locations + 2 * p);
      const Lanes weight = load<Lanes>(row.weights + p);
      const PlannedTaps<F> taps(plan, weight);
      alignas(64) F dots[4][kPoints] = {};
      const int count = static_cast<int>(std::min<std::int64_t>(kPoints, sizes.P - p));
      for (int i = 0; i < count; ++i) {
        const std::int64_t top = std::int64_t{taps.token[i]} * kWidth, bottom = top + level.row * kWidth;
        if (need_points) {
          dots[0][i] = gradient.dot(packed + top);
          dots[1][i] = gradient.dot(packed + top + kWidth);
          dots[2][i] = gradient.dot(packed + bottom);
          dots[3][i] = gradient.dot(packed + bottom + kWidth);
        }
        if (need_value) {
          gradient.add_to(taps.factor[0][i], grad_packed + top);
          gradient.add_to(taps.factor[1][i], grad_packed + top + kWidth);
          gradient.add_to(taps.factor[2][i], grad_packed + bottom);
          gradient.add_to(taps.factor[3][i], grad_packed + bottom + kWidth);
        }
      }
      if (!need_points) continue;
      const Corners<Lanes> corner_dots = {load<Lanes>(dots[0]), load<Lanes>(dots[1]), load<Lanes>(dots[2]),
                                          load<Lanes>(dots[3])};
      PointGradient<Lanes> result =
          point_gradient(corner_dots, plan.x, plan.y, weight, Lanes{} + static_cast<F>(level.width),
                         Lanes{} + static_cast<F>(level.height));
      Lanes first = __builtin_shufflevector(result.location_x, result.location_y, 0, 4, 1, 5);
      Lanes second = __builtin_shufflevector(result.location_x, result.location_y, 2, 6, 3, 7);
      F* locations = grad_row.locations + 2 * p;
      F* weights = grad_row.weights + p;
      if (accumulate) {
        first += load<Lanes>(locations);
        second += load<Lanes>(locations + kPoints);
        result.weight += load<Lanes>(weights);
      }
      store(locations, first);
      store(locations + kPoints, second);
      store(weights, result.weight);
    }
  }

  void run() {
    const std::int64_t tasks = sizes.B * sizes.N * sizes.L;
    if (tasks == 0) return;
    const int threads = static_cast<int>(std::min<std::int64_t>(sizes.threads, tasks));
    const Scratch memory(static_cast<std::size_t>(threads * worker_size()) * sizeof(F));
    scratch = static_cast<F*>(memory.data());
    for (int worker = 0; worker < threads; ++worker)
      std::fill_n(scratch + worker * worker_size() + 2 * slice_size, points.buffer_size(), F(0));
    parallel_for(tasks, threads, level_task, this);
  }
};

int channel_width(std::int64_t channels) { return channels <= 8 ? 8 : channels <= 16 ? 16 : channels <= 32 ? 32 : 64; }

template <template <class, int> class Pass, class F>
void run(const MSDeformAttnArgs& args) {
  switch (channel_width(args.value.shape[3])) {
    case 8:
      return Pass<F, 8>(args).run();
    case 16:
      return Pass<F, 16>(args).run();
    case 32:
      return Pass<F, 32>(args).run();
    default:
      return Pass<F, 64>(args).run();
  }
}

template <class F>
void forward(const MSDeformAttnArgs& args) {
  if (!args.reference.present) return run<Forward, F>(args);
  const FirstForm<F> first(args);
  run<Forward, F>(first.args());
}

template <class F>
void backward(const MSDeformAttnArgs& args) {
  if (!args.reference.present) return run<Backward, F>(args);
  FirstForm<F> first(args);
  run<Backward, F>(first.args());
  first.write_gradients();
}

}  // namespace

void ms_deform_attn_forward_cpu(const MSDeformAttnArgs& args) {
  args.value.dtype == DType::kFloat64 ? forward<double>(args) : forward<float>(args);
}

void ms_deform_attn_backward_cpu(const MSDeformAttnArgs& args) {
  args.value.dtype == DType::kFloat64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace alignmask::ALIGNMASK_ISA
