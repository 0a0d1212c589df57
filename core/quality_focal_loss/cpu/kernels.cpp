// The CPU kernel. Blocks of rows are divided among threads. Within a row all classes are first
// treated as negatives, a vector register of logits at a time; the vector that holds the label then
// gets the label's term in its lane.
#include <algorithm>
#include <cmath>

#include "common/cpu/dispatch.h"
#include "common/cpu/parallel_for.h"
#include "common/cpu/simd.h"
#include "common/cpu/strided_copy.h"
#include "quality_focal_loss/formula.h"
#include "quality_focal_loss/quality_focal_loss.h"

namespace alignmask::ALIGNMASK_ISA {

void quality_focal_loss_forward_cpu(const QualityFocalLossArgs& args);

namespace {

constexpr std::int64_t kLogitsPerTask = 8192;

template <class F, bool kSquare>
struct Forward {
  static constexpr int kLanes = ALIGNMASK_VECTOR_BYTES / sizeof(F);
  using Lanes = Pack<F, kLanes>;

  const QualityFocalLossArgs& args;
  std::int64_t R, C, rows_per_task;
  F gamma, theta;
  bool direct, direct_gradient;  // rows are contiguous F
  F* buffers = nullptr;          // [threads, 2, C]

  explicit Forward(const QualityFocalLossArgs& args)
      : args(args),
        R(args.logits.shape[0]),
        C(args.logits.shape[1]),
        rows_per_task(std::max<std::int64_t>(1, kLogitsPerTask / std::max<std::int64_t>(C, 1))),
        gamma(static_cast<F>(args.gamma)),
        theta(static_cast<F>(args.theta)),
        direct(contiguous<F>(args.logits, 1)),
        direct_gradient(contiguous<F>(args.grad_logits, 1)) {}

  static F power(F base, F exponent) {
    return kSquare && exponent == 2 ? base * base : std::pow(base, exponent);
  }

  static void block(void* context, std::int64_t task, int worker) {
    const Forward& self = *static_cast<const Forward*>(context);
    F* buffer = self.buffers + worker * 2 * self.C;
    const std::int64_t end = std::min(self.R, (task + 1) * self.rows_per_task);
    for (std::int64_t r = task * self.rows_per_task; r < end; ++r)
      self.row(r, buffer, buffer + self.C);
  }

  void row(std::int64_t r, F* logits_buffer, F* gradient_buffer) const {
    const TensorView &logits = args.logits, &gradients = args.grad_logits;
    const StridedRows from = {&logits, r * logits.strides[0], 1, C, 0, logits.strides[1]};
    const F* x = static_cast<const F*>(logits.data) + from.offset;
    if (!direct) {
      copy_in(from, logits_buffer, 0);
      x = logits_buffer;
    }
    const StridedRows to = {&gradients, r * gradients.strides[0], 1, C, 0, gradients.strides[1]};
    F* gradient = !gradients.present ? nullptr
                  : direct_gradient  ? static_cast<F*>(gradients.data) + to.offset
                                     : gradient_buffer;

    const std::int64_t label = int_at(args.label, r * args.label.strides[0]);
    F iou;
    copy_in({&args.iou, r * args.iou.strides[0], 1, 1, 0, 0}, &iou, 0);
    const F weight = label >= 0 ? F(1) : negative_weight(iou, gamma, theta, power);
    Lanes sum{};
    for (std::int64_t c = 0; c < C; c += kLanes) {
      const int count = static_cast<int>(std::min<std::int64_t>(kLanes, C - c));
      const F* lanes = x + c;
      alignas(64) F last[kLanes] = {};  // the last lanes of a row may be fewer
      if (count < kLanes) lanes = std::copy_n(lanes, count, last) - count;
      LossTerm<Lanes> term = negative_term<kSquare>(load<Lanes>(lanes), gamma);
      term = {weight * term.loss, weight * term.gradient};
      if (label >= c && label < c + count) {
        const LossTerm<F> positive = positive_term(x[label], iou, gamma, power);
        term.loss[label - c] = positive.loss;
        term.gradient[label - c] = positive.gradient;
      }
      for (int i = count; i < kLanes; ++i) term.loss[i] = 0;
      sum += term.loss;
      if (!gradient) continue;
      if (count == kLanes) {
        store(gradient + c, term.gradient);
      } else {
        for (int i = 0; i < count; ++i) gradient[c + i] = term.gradient[i];
      }
    }
    const F loss = sum_of_lanes<F, kLanes>(sum);
    copy_out(&loss, 0, {&args.loss, r * args.loss.strides[0], 1, 1, 0, 0});
    if (gradient && !direct_gradient) copy_out(gradient, 0, to);
  }

  void run() {
    const std::int64_t tasks = (R + rows_per_task - 1) / rows_per_task;
    const int threads = threads_for(static_cast<double>(R) * static_cast<double>(C), kLogitsPerTask,
                                    tasks, args.threads);
    const Scratch memory(static_cast<std::size_t>(threads * 2 * C) * sizeof(F));
    buffers = static_cast<F*>(memory.data());
    parallel_for(tasks, threads, block, this);
  }
};

template <class F>
void run(const QualityFocalLossArgs& args) {
  args.gamma == 2 ? Forward<F, true>(args).run() : Forward<F, false>(args).run();
}

}  // namespace

void quality_focal_loss_forward_cpu(const QualityFocalLossArgs& args) {
  if (args.loss.elements() == 0) return;
  args.logits.dtype == DType::kFloat64 ? run<double>(args) : run<float>(args);
}

}  // namespace alignmask::ALIGNMASK_ISA
