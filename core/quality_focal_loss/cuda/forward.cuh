// Quality focal loss in CUDA.
#pragma once

#include "common/cuda/vector.cuh"
#include "common/cuda/warp.cuh"
#include "params.h"
#include "quality_focal_loss/formula.h"

namespace alignmask {

using namespace ALIGNMASK_ISA;

/// Writes the loss of every row and, if it is wanted, its gradient: every logit is read once. Eight
/// lanes share a row, kVector logits at a time, and put their sums together by shuffles. kSquare:
/// gamma is 2.
///
/// kVector > 1: the logits of a row lie together, as does their gradient, aligned to 16 bytes; so
/// do all rows.
///
/// The launch bounds ask for half of the threads that a multiprocessor can hold, enough to load the
/// next logits while exponentials are computed; the kernel needs fewer registers than that leaves
/// it.
template <class T, int kVector, bool kSquare>
ALIGNMASK_KERNEL(kLossThreads, 4)
quality_focal_loss_forward(ALIGNMASK_PARAMS QualityFocalLossParams params) {
  using F = Arithmetic<T>;
  const int lane = threadIdx.x % kLossLanes;
  Int64 row =
      static_cast<Int64>(blockIdx.x) * (kLossThreads / kLossLanes) + threadIdx.x / kLossLanes;
  const bool exists = row < params.rows;
  if (!exists) row = params.rows - 1;  // participates, and writes nothing

  const F gamma = static_cast<F>(params.gamma), theta = static_cast<F>(params.theta);
  const auto power = [](F base, F exponent) {
    return kSquare ? base * base : power_of(base, exponent);
  };
  const Int64 label = load_int(params.label, row * params.label_stride, params.label_wide);
  const bool has_label = label >= 0 && label < params.classes;
  const F iou = load_as<F>(params.iou, row * params.iou_stride, params.iou_type);
  const F weight = has_label ? F{1} : negative_weight(iou, gamma, theta, power);
  const Int64 stride = kVector > 1 ? 1 : params.logits_strides[1];
  const T* const logits = static_cast<const T*>(params.logits) + row * params.logits_strides[0];
  F* const gradients = static_cast<F*>(params.grad_logits) + row * params.grad_strides[0];

  F sum = 0;
  for (Int64 first = lane * kVector; first < params.classes; first += kLossLanes * kVector) {
    F x[kVector], gradient[kVector];
    load<T, kVector>(logits + first * stride).unpack_to(x);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const LossTerm<F> term = negative_term<kSquare>(x[i], gamma);
      if (!has_label || label != first + i) sum += weight * term.loss;
      gradient[i] = weight * term.gradient;
    }
    if (!params.grad_logits || !exists) continue;
    if constexpr (kVector == 1) {
      gradients[first * params.grad_strides[1]] = gradient[0];
    } else {
#pragma unroll
      for (int i = 0; i < kVector; i += 4) {
        const F four[4] = {gradient[i], gradient[i + 1], gradient[i + 2], gradient[i + 3]};
        store<F, 4>(four, gradients + first + i);
      }
    }
  }
  if (has_label &&
      lane == label / kVector % kLossLanes) {  // whose gradient this lane has just written
    const LossTerm<F> term =
        positive_term(to_arithmetic(logits[label * stride]), iou, gamma, power);
    sum += term.loss;
    if (params.grad_logits && exists)
      gradients[label * (kVector > 1 ? 1 : params.grad_strides[1])] = term.gradient;
  }
  sum = reduce<kLossLanes>(sum, [](F a, F b) { return a + b; });
  if (lane == 0 && exists)
    from_arithmetic(sum, static_cast<T*>(params.loss)[row * params.loss_stride]);
}

}  // namespace alignmask
