// The second form of a call as its first form: locations and weights from reference points, offsets and logits, and the
// way back for their gradients.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "../common/parallel_for.h"
#include "../common/strided_copy.h"
#include "ms_deform_attn.h"

namespace alignmask::ALIGNMASK_ISA {

template <class F>
class FirstForm {
 public:
  explicit FirstForm(const MSDeformAttnArgs& second)
      : second_(second),
        first_(second),
        N_(second.weights.shape[2]),
        L_(second.weights.shape[3]),
        P_(second.weights.shape[4]),
        points_(L_ * P_),
        rows_(second.weights.shape[0] * second.weights.shape[1] * N_),
        memory_(static_cast<std::size_t>(rows_ * points_ * 6) * sizeof(F)) {
    F* memory = static_cast<F*>(memory_.data());
    first_.reference = first_.grad_reference = {};
    first_.locations = contiguous(second.locations, memory);
    first_.weights = contiguous(second.weights, memory + 2 * rows_ * points_);
    if (need_points()) {
      first_.grad_locations = contiguous(second.locations, memory + 3 * rows_ * points_);
      first_.grad_weights = contiguous(second.weights, memory + 5 * rows_ * points_);
    }
    parallel_for(rows_, second_.threads, locate, this);
  }

  const MSDeformAttnArgs& args() const { return first_; }

  void write_gradients() {
    if (!need_points()) return;
    parallel_for(rows_, second_.threads, turn_back, this);
    parallel_for(second_.weights.shape[0] * second_.weights.shape[1], second_.threads, add_up_reference, this);
  }

 private:
  bool need_points() const {
    return second_.grad_locations.present || second_.grad_weights.present || second_.grad_reference.present;
  }

  static TensorView contiguous(TensorView view, F* data) {
    view.data = data;
    view.dtype = sizeof(F) == 8 ? DType::kFloat64 : DType::kFloat32;
    view.present = true;
    std::int64_t stride = 1;
    for (int i = view.dims - 1; i >= 0; stride *= view.shape[i--]) view.strides[i] = stride;
    return view;
  }

  F* row(const TensorView& tensor, std::int64_t row, int numbers) const {
    return static_cast<F*>(tensor.data) + row * points_ * numbers;
  }

  StridedRows point_rows(const TensorView& tensor, std::int64_t row, std::int64_t l) const {
    const std::int64_t n = row % N_, q = row / N_ % tensor.shape[1], b = row / N_ / tensor.shape[1];
    const std::int64_t* stride = tensor.strides;
    const std::int64_t offset = b * stride[0] + q * stride[1] + n * stride[2] + l * stride[3];
    if (tensor.dims == 5) return {&tensor, offset, 1, P_, 0, stride[4]};
    return {&tensor, offset, P_, 2, stride[4], stride[5]};
  }

  static StridedRows reference_row(const TensorView& tensor, std::int64_t query, std::int64_t l) {
    const std::int64_t q = query % tensor.shape[1], b = query / tensor.shape[1];
    const std::int64_t* stride = tensor.strides;
    return {&tensor, b * stride[0] + q * stride[1] + l * stride[2], 1, 2, 0, stride[3]};
  }

  /// One level's (width, height); an empty one samples nothing.
  F size(std::int64_t l, int axis) const {
    const MSDeformAttnLevel& level = second_.levels[static_cast<std::size_t>(l)];
    return static_cast<F>(axis ? level.height : level.width);
  }

  static void locate(void* context, std::int64_t row, int) {
    const FirstForm& self = *static_cast<const FirstForm*>(context);
    F* locations = self.row(self.first_.locations, row, 2);
    F* weights = self.row(self.first_.weights, row, 1);
    F largest = -INFINITY, sum = 0;
    for (std::int64_t l = 0; l < self.L_; ++l) {
      F centre[2];
      copy_in(reference_row(self.second_.reference, row / self.N_, l), centre, 0);
      copy_in(self.point_rows(self.second_.locations, row, l), locations + 2 * l * self.P_, 2);
      copy_in(self.point_rows(self.second_.weights, row, l), weights + l * self.P_, 0);
      for (std::int64_t p = l * self.P_; p < (l + 1) * self.P_; ++p) {
        for (int axis = 0; axis < 2; ++axis) {
          const F size = self.size(l, axis);
          locations[2 * p + axis] = centre[axis] + (size > 0 ? locations[2 * p + axis] / size : 0);
        }
        largest = weights[p] > largest ? weights[p] : largest;
      }
    }
    for (std::int64_t p = 0; p < self.points_; ++p) sum += weights[p] = std::exp(weights[p] - largest);
    for (std::int64_t p = 0; p < self.points_; ++p) weights[p] /= sum;
  }

  static void turn_back(void* context, std::int64_t row, int) {
    const FirstForm& self = *static_cast<const FirstForm*>(context);
    F* grad_locations = self.row(self.first_.grad_locations, row, 2);
    F* grad_weights = self.row(self.first_.grad_weights, row, 1);
    const F* weights = self.row(self.first_.weights, row, 1);
    F mean = 0;
    for (std::int64_t p = 0; p < self.points_; ++p) mean += weights[p] * grad_weights[p];
    for (std::int64_t l = 0; l < self.L_; ++l) {
      for (std::int64_t p = l * self.P_; p < (l + 1) * self.P_; ++p) {
        for (int axis = 0; axis < 2; ++axis)
          grad_locations[2 * p + axis] = self.size(l, axis) > 0 ? grad_locations[2 * p + axis] / self.size(l, axis) : 0;
        grad_weights[p] = weights[p] * (grad_weights[p] - mean);
      }
      if (self.second_.grad_locations.present)
        copy_out(grad_locations + 2 * l * self.P_, 2, self.point_rows(self.second_.grad_locations, row, l));
      if (self.second_.grad_weights.present)
        copy_out(grad_weights + l * self.P_, 0, self.point_rows(self.second_.grad_weights, row, l));
    }
  }

  static void add_up_reference(void* context, std::int64_t query, int) {
    const FirstForm& self = *static_cast<const FirstForm*>(context);
    if (!self.second_.grad_reference.present) return;
    for (std::int64_t l = 0; l < self.L_; ++l) {
      F sum[2] = {0, 0};
      for (std::int64_t n = 0; n < self.N_; ++n) {
        const F* grad = self.row(self.first_.grad_locations, query * self.N_ + n, 2) + 2 * l * self.P_;
        for (std::int64_t p = 0; p < self.P_; ++p)
          for (int axis = 0; axis < 2; ++axis) sum[axis] += grad[2 * p + axis] * self.size(l, axis);
      }
      copy_out(sum, 0, reference_row(self.second_.grad_reference, query, l));
    }
  }

  const MSDeformAttnArgs& second_;
  MSDeformAttnArgs first_;
  std::int64_t N_, L_, P_, points_, rows_;
  Scratch memory_;
};

}  // namespace alignmask::ALIGNMASK_ISA
