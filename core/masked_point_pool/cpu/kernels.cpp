// The CPU kernels. The points of an image are sorted by the feature row they fall on and sampled
// from the masks (Plan). Then a task takes a block of channels of an image and sweeps over the
// points from top to bottom: features stream through the caches once, and every channel's sums have
// one owner and one order, whatever the number of threads. The backward pass sweeps in the same way
// and adds into the gradient's rows.
//
// Channels-last features are read, and their gradient is written, in place. Of any other layout or
// data type, the two rows that a sweep is at are copied.
#include <algorithm>

#include "common/cpu/channels.h"
#include "common/cpu/dispatch.h"
#include "plan.h"

namespace alignmask::ALIGNMASK_ISA {

void masked_point_pool_forward_cpu(const MaskedPointPoolArgs& args);
void masked_point_pool_backward_cpu(const MaskedPointPoolArgs& args);

namespace {

// samples of a channel below which another thread does not pay
constexpr std::int64_t kWorkPerThread = 200'000;

/// The channels [channel, channel + count) of an image's features or of their gradient.
template <class F, int kWidth>
struct Block {
  const TensorView& tensor;
  std::int64_t offset, count, height, width;
  bool direct;  // in place: a pixel's channels are kWidth contiguous F

  Block(const TensorView& tensor, std::int64_t b, std::int64_t channel)
      : tensor(tensor),
        offset(b * tensor.strides[0] + channel * tensor.strides[1]),
        count(std::min<std::int64_t>(kWidth, tensor.shape[1] - channel)),
        height(tensor.shape[2]),
        width(tensor.shape[3]),
        direct(count == kWidth && tensor.strides[1] == 1 &&
               tensor.dtype == (sizeof(F) == 8 ? DType::kFloat64 : DType::kFloat32)) {}

  std::int64_t pixel_stride() const { return direct ? tensor.strides[3] : kWidth; }
  bool has_row(std::int64_t y) const { return y >= 0 && y < height; }
  F* row_in_place(std::int64_t y) const {
    return static_cast<F*>(tensor.data) + offset + y * tensor.strides[2];
  }
  StridedRows row(std::int64_t y) const {
    return {&tensor,          offset + y * tensor.strides[2], width, count, tensor.strides[3],
            tensor.strides[1]};
  }
  /// The pixel in column x of a row, or `outside`.
  template <class Pointer>
  ALIGNMASK_HOST_DEVICE Pointer pixel(Pointer row, std::int64_t x, Pointer outside) const {
    return row && x >= 0 && x < width ? row + x * pixel_stride() : outside;
  }
};

/// What both passes share.
template <class F, int kWidth>
struct Pass {
  using Channels = ChannelPacks<F, kWidth>;

  const MaskedPointPoolArgs& args;
  std::int64_t B, C, G, T, K, H, W, blocks, tasks;
  int threads;
  Plan<F> plan;
  std::int64_t most_slots = 0, worker_bytes = 0;
  unsigned char* memory = nullptr;

  explicit Pass(const MaskedPointPoolArgs& args)
      : args(args),
        B(args.features.shape[0]),
        C(args.features.shape[1]),
        G(args.owner.shape[0]),
        T(args.points.shape[1]),
        K(args.points.shape[2]),
        H(args.features.shape[2]),
        W(args.features.shape[3]),
        blocks((C + kWidth - 1) / kWidth),
        tasks(B * blocks),
        threads(threads_for(static_cast<double>(B) * static_cast<double>(T * K * C), kWorkPerThread,
                            std::max<std::int64_t>(tasks, 1), args.threads)),
        plan(args, threads) {
    for (std::int64_t b = 0; b < B; ++b)
      most_slots = std::max(most_slots, T * plan.instances().count(b));
    cut(ScratchArena(nullptr), &worker_bytes);
  }

  /// A worker's memory.
  struct Buffers {
    F* slots;    // [T · M, kWidth]: sums, or gradients of pooled
    F* rows;     // [2, W, kWidth]
    F* outside;  // [kWidth]: zeros where nothing is read, or a place for gradients that are dropped
  };

  Buffers cut(ScratchArena arena, std::int64_t* bytes = nullptr) const {
    Buffers buffers;
    buffers.slots = arena.take<F>(most_slots * kWidth);
    buffers.rows = arena.take<F>(2 * W * kWidth);
    buffers.outside = arena.take<F>(kWidth);
    if (bytes) *bytes = arena.bytes();
    return buffers;
  }
  Buffers buffers_of(int worker) const {
    const Buffers buffers = cut(ScratchArena(memory + worker * worker_bytes));
    std::fill_n(buffers.outside, kWidth, F(0));
    return buffers;
  }

  /// weight[g, t], the divisor of the slot's sum, or 1 where that is 0.
  F weight_of(std::int64_t g, std::int64_t t) const {
    F weight;
    copy_in({&args.weight, g * args.weight.strides[0] + t * args.weight.strides[1], 1, 1, 0, 0},
            &weight, 0);
    return weight;
  }
  F divisor_of(std::int64_t g, std::int64_t t) const {
    const F divisor = args.divide_by_points ? static_cast<F>(K) : weight_of(g, t);
    return divisor > 0 ? divisor : F(1);
  }
  StridedRows slot_row(const TensorView& tensor, std::int64_t g, std::int64_t t,
                       std::int64_t channel, std::int64_t count) const {
    return {&tensor, g * tensor.strides[0] + t * tensor.strides[1] + channel * tensor.strides[2],
            1,       count,
            0,       tensor.strides[2]};
  }

  void run(void (*task)(void*, std::int64_t, int), void* self) {
    const Scratch scratch(static_cast<std::size_t>(threads * worker_bytes));
    memory = static_cast<unsigned char*>(scratch.data());
    parallel_for(tasks, threads, task, self);
  }
};

template <class F, int kWidth>
struct Forward : Pass<F, kWidth> {
  using Base = Pass<F, kWidth>;
  using Base::args, Base::plan, Base::T;

  explicit Forward(const MaskedPointPoolArgs& args) : Base(args) {}

  static void sum_weights(void* context, std::int64_t b, int worker) {
    const Forward& self = *static_cast<const Forward*>(context);
    const std::int64_t M = self.plan.instances().count(b);
    const auto* instances = self.plan.instances().of(b);
    auto* sums = reinterpret_cast<double*>(self.memory) + worker * self.most_slots;
    std::fill_n(sums, self.T * M, 0.0);
    self.plan.sweep(b, [&](const PlannedPoint<F>&, const Hit<F>* hit, const Hit<F>* end) {
      for (; hit < end; ++hit) sums[hit->slot] += hit->value;
    });
    const TensorView& weight = self.args.weight;
    for (std::int64_t t = 0; t < self.T; ++t)
      for (std::int64_t m = 0; m < M; ++m)
        copy_out(&sums[t * M + m], 0,
                 {&weight, instances[m] * weight.strides[0] + t * weight.strides[1], 1, 1, 0, 0});
  }

  static void block_task(void* context, std::int64_t task, int worker) {
    const Forward& self = *static_cast<const Forward*>(context);
    const std::int64_t b = task / self.blocks, channel = task % self.blocks * kWidth;
    const std::int64_t M = self.plan.instances().count(b);
    if (M == 0) return;
    const Block<F, kWidth> block(self.args.features, b, channel);
    const auto buffers = self.buffers_of(worker);
    std::fill_n(buffers.slots, self.T * M * kWidth, F(0));
    self.sweep(block, b, buffers);
    for (std::int64_t t = 0; t < self.T; ++t) {
      for (std::int64_t m = 0; m < M; ++m) {
        const std::int64_t g = self.plan.instances().of(b)[m];
        F* sums = buffers.slots + (t * M + m) * kWidth;
        const F divisor = self.divisor_of(g, t);
        for (int c = 0; c < kWidth; ++c) sums[c] /= divisor;
        copy_out(sums, 0, self.slot_row(self.args.pooled, g, t, channel, block.count));
      }
    }
  }

  void sweep(const Block<F, kWidth>& block, std::int64_t b,
             const typename Base::Buffers& buffers) const {
    std::int64_t at = -2, held[2] = {-1, -1};  // the sweep's row, and the rows in buffers.rows
    const F *top = nullptr, *bottom = nullptr;
    const auto row = [&](std::int64_t y) -> const F* {
      if (!block.has_row(y)) return nullptr;
      if (block.direct) return block.row_in_place(y);
      F* copy = buffers.rows + y % 2 * block.width * kWidth;
      if (held[y % 2] != y) copy_in(block.row(y), copy, kWidth);
      held[y % 2] = y;
      return copy;
    };
    plan.sweep(b, [&](const PlannedPoint<F>& point, const Hit<F>* hit, const Hit<F>* end) {
      if (point.y != at) {
        at = point.y;
        top = row(at);
        bottom = row(at + 1);
      }
      const F* outside = buffers.outside;
      const Corners<F> weight = corner_weights(point.x_part, point.y_part);
      auto sampled = Base::Channels::zeros();
      sampled.add(weight.top_left, block.pixel(top, point.x, outside));
      sampled.add(weight.top_right, block.pixel(top, point.x + 1, outside));
      sampled.add(weight.bottom_left, block.pixel(bottom, point.x, outside));
      sampled.add(weight.bottom_right, block.pixel(bottom, point.x + 1, outside));
      for (; hit < end; ++hit)
        sampled.add_to(hit->value, buffers.slots + std::int64_t{hit->slot} * kWidth);
    });
  }

  void run() {
    const int threads =
        std::max(1, static_cast<int>(std::min<std::int64_t>(this->threads, this->B)));
    const Scratch sums(static_cast<std::size_t>(threads * this->most_slots) * sizeof(double));
    this->memory = static_cast<unsigned char*>(sums.data());
    parallel_for(this->B, threads, sum_weights, this);
    Base::run(block_task, this);
  }
};

template <class F, int kWidth>
struct Backward : Pass<F, kWidth> {
  using Base = Pass<F, kWidth>;
  using Base::args, Base::plan, Base::T;

  explicit Backward(const MaskedPointPoolArgs& args) : Base(args) {}

  static void block_task(void* context, std::int64_t task, int worker) {
    const Backward& self = *static_cast<const Backward*>(context);
    const std::int64_t b = task / self.blocks, channel = task % self.blocks * kWidth;
    const std::int64_t M = self.plan.instances().count(b);
    const Block<F, kWidth> block(self.args.grad_features, b, channel);
    const auto buffers = self.buffers_of(worker);
    for (std::int64_t t = 0; t < self.T; ++t) {
      for (std::int64_t m = 0; m < M; ++m) {
        const std::int64_t g = self.plan.instances().of(b)[m];
        F* gradient = buffers.slots + (t * M + m) * kWidth;
        if (block.count < kWidth) std::fill_n(gradient, kWidth, F(0));
        copy_in(self.slot_row(self.args.grad_pooled, g, t, channel, block.count), gradient, 0);
        const F divisor = self.divisor_of(g, t);
        for (int c = 0; c < kWidth; ++c) gradient[c] /= divisor;
      }
    }
    self.sweep(block, b, buffers);
  }

  /// Rows are zeroed just before the sweep reaches them; copies are written back when it has
  /// passed.
  void sweep(const Block<F, kWidth>& block, std::int64_t b,
             const typename Base::Buffers& buffers) const {
    std::int64_t opened = 0, at = -2;
    F *top = nullptr, *bottom = nullptr;
    const auto row = [&](std::int64_t y) -> F* {
      if (!block.has_row(y)) return nullptr;
      return block.direct ? block.row_in_place(y) : buffers.rows + y % 2 * block.width * kWidth;
    };
    const auto open_until = [&](std::int64_t end) {
      for (; opened < end; ++opened) {
        if (!block.direct && block.has_row(opened - 2))
          copy_out(row(opened - 2), kWidth, block.row(opened - 2));
        F* pixel = row(opened);
        if (!pixel) continue;
        for (std::int64_t x = 0; x < block.width; ++x, pixel += block.pixel_stride())
          std::fill_n(pixel, kWidth, F(0));
      }
    };
    plan.sweep(b, [&](const PlannedPoint<F>& point, const Hit<F>* hit, const Hit<F>* end) {
      if (point.y != at) {
        at = point.y;
        open_until(std::min(at + 2, block.height));
        top = row(at);
        bottom = row(at + 1);
      }
      const Corners<F> weight = corner_weights(point.x_part, point.y_part);
      auto gradient = Base::Channels::zeros();
      for (; hit < end; ++hit)
        gradient.add(hit->value, buffers.slots + std::int64_t{hit->slot} * kWidth);
      F* nowhere = buffers.outside;
      gradient.add_to(weight.top_left, block.pixel(top, point.x, nowhere));
      gradient.add_to(weight.top_right, block.pixel(top, point.x + 1, nowhere));
      gradient.add_to(weight.bottom_left, block.pixel(bottom, point.x, nowhere));
      gradient.add_to(weight.bottom_right, block.pixel(bottom, point.x + 1, nowhere));
    });
    open_until(block.height + 2);
  }

  void run() {
    prefer_large_pages(args.grad_features);
    Base::run(block_task, this);
  }
};

template <template <class, int> class Direction, class F>
void run(const MaskedPointPoolArgs& args) {
  // Narrow blocks where wide ones would be padding, or too few for the threads. The sums are the
  // same.
  const std::int64_t wide_tasks = args.features.shape[0] * ((args.features.shape[1] + 63) / 64);
  args.features.shape[1] <= 16 || wide_tasks < args.threads ? Direction<F, 16>(args).run()
                                                            : Direction<F, 64>(args).run();
}

}  // namespace

void masked_point_pool_forward_cpu(const MaskedPointPoolArgs& args) {
  if (args.weight.elements() == 0) return;
  args.features.dtype == DType::kFloat64 ? run<Forward, double>(args) : run<Forward, float>(args);
}

void masked_point_pool_backward_cpu(const MaskedPointPoolArgs& args) {
  if (args.grad_features.elements() == 0) return;
  args.features.dtype == DType::kFloat64 ? run<Backward, double>(args) : run<Backward, float>(args);
}

}  // namespace alignmask::ALIGNMASK_ISA
