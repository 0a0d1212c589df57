// The loss of one logit and its derivative, for scalars and for packs of logits; host and device.
#pragma once

#include "common/exp_log.h"
#include "common/target.h"

namespace alignmask::ALIGNMASK_ISA {

/// A sigmoid and what the loss needs of it, without cancellation for any logit.
template <class F>
struct Sigmoid {
  F s, rest;         ///< s and 1 - s
  F minus_log_rest;  ///< BCE(s, 0) = softplus(x)
  F minus_log_s;     ///< BCE(s, 1) = softplus(-x)
};

template <class F>
ALIGNMASK_HOST_DEVICE Sigmoid<F> sigmoid(F x) {
  const auto positive = x >= F{};
  const F e = exp_of_negative(positive ? -x : x);
  const F larger = 1 / (1 + e), smaller = e * larger, log = log1p_of_unit(e);
  return {positive ? larger : smaller, positive ? smaller : larger, log + (positive ? x : F{}),
          log + (positive ? F{} : -x)};
}

template <class F>
struct LossTerm {
  F loss, gradient;
};

/// s^γ · BCE(s, 0), the term of a class that is not the label.
template <bool kSquare, class F, class T>
ALIGNMASK_HOST_DEVICE LossTerm<F> negative_term(F x, T gamma) {
  const Sigmoid<F> of = sigmoid(x);
  F power;
  if constexpr (kSquare) {
    power = of.s * of.s;
  } else {
    power = exp_of_negative(-gamma * of.minus_log_s);
  }
  return {power * of.minus_log_rest, power * (gamma * of.rest * of.minus_log_rest + of.s)};
}

/// |t - s|^γ · BCE(s, t), the term of the label. `power(base, exponent)`.
template <class T, class Power>
ALIGNMASK_HOST_DEVICE LossTerm<T> positive_term(T x, T target, T gamma, Power power) {
  const Sigmoid<T> of = sigmoid(x);
  const T difference = of.s - target, distance = difference < 0 ? -difference : difference;
  const T bce = target * of.minus_log_s + (1 - target) * of.minus_log_rest;
  const T lower = gamma == 2 ? distance : power(distance, gamma - 1);          // |t - s|^(γ - 1)
  const T side = difference > 0 ? T(1) : difference < 0 ? T(-1) : difference;  // NaN stays
  return {distance * lower * bce,
          lower * (gamma * side * of.s * of.rest * bce + distance * difference)};
}

/// w_neg of Eq. (2): 1 below θ, then falling to 0 at IoU 1.
template <class T, class Power>
ALIGNMASK_HOST_DEVICE T negative_weight(T iou, T gamma, T theta, Power power) {
  return iou < theta ? T(1) : (1 - power(iou, gamma)) / (1 - power(theta, gamma));
}

}  // namespace alignmask::ALIGNMASK_ISA
