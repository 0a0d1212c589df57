// The sampling points of one (image, query, head): from the caller's tensors, in either form, to
// positions in pixels and weights, and back for their gradients. L·P points lie in a row, level
// after level, and are worked on in packs of lanes; the row is padded to whole packs.
#pragma once

#include <cstdint>

#include "common/arena.h"
#include "common/cpu/parallel_for.h"
#include "common/cpu/simd.h"
#include "common/cpu/strided_copy.h"
#include "common/exp_log.h"
#include "ms_deform_attn/ms_deform_attn.h"

namespace alignmask::ALIGNMASK_ISA {

template <class F>
constexpr int kPointLanes = ALIGNMASK_VECTOR_BYTES / sizeof(F);
template <class F>
using PointLanes = Pack<F, kPointLanes<F>>;

/// A pack of points: positions in pixels of their levels, pixel centres at whole numbers, and
/// attention weights.
template <class F>
struct PointPack {
  PointLanes<F> x, y, weight;
};

/// What one worker needs for the points of one (query, head); all arrays are rows of padded()
/// points.
template <class F>
struct PointRow {
  F *origin_x, *origin_y;  ///< position = what the caller passes · scale + origin
  F *pairs, *numbers;  ///< buffers for the caller's locations and weights where they cannot be used
                       ///< in place
  F* weight;           ///< with offsets: after the softmax
  F *grad_x, *grad_y;  ///< gradients of what the caller passes
  F* grad_weight;      ///< gradient of the attention weight
};

/// Rows [B, Q, N] of locations, weights or their gradients, each with `count` numbers.
template <class F>
class PointTensor {
 public:
  explicit PointTensor(const TensorView& tensor)
      : tensor_(&tensor),
        b_(tensor.strides[0]),
        q_(tensor.strides[1]),
        n_(tensor.strides[2]),
        count_(tensor.shape[3] * tensor.shape[4] * (tensor.dims == 6 ? 2 : 1)),
        together_(together(tensor, 3)),
        in_place_(contiguous<F>(tensor, 3)) {}

  bool present() const { return tensor_->present; }
  bool in_place() const { return in_place_; }

  /// Where the row lies, or `buffer`.
  ALIGNMASK_HOST_DEVICE F* place(std::int64_t b, std::int64_t q, std::int64_t n, F* buffer) const {
    return in_place_ ? static_cast<F*>(tensor_->data) + b * b_ + q * q_ + n * n_ : buffer;
  }
  void load(std::int64_t b, std::int64_t q, std::int64_t n, F* buffer) const {
    each_part(b, q, n, [buffer](const StridedRows& part, std::int64_t first) {
      copy_in(part, buffer + first, part.columns);
    });
  }
  void save(std::int64_t b, std::int64_t q, std::int64_t n, const F* buffer) const {
    each_part(b, q, n, [buffer](const StridedRows& part, std::int64_t first) {
      copy_out(buffer + first, part.columns, part);
    });
  }
  /// Prefetches the row: a head's rows lie far apart, where the hardware does not prefetch.
  void prefetch(std::int64_t b, std::int64_t q, std::int64_t n) const {
    if (together_) prefetch_elements(*tensor_, b * b_ + q * q_ + n * n_, count_);
  }

 private:
  /// The row as matrices: one if its numbers lie together, else one per level.
  template <class Function>
  void each_part(std::int64_t b, std::int64_t q, std::int64_t n, Function function) const {
    const std::int64_t* stride = tensor_->strides;
    const std::int64_t L = tensor_->shape[3], P = tensor_->shape[4], at = b * b_ + q * q_ + n * n_;
    if (together_) return function(StridedRows{tensor_, at, 1, count_, 0, 1}, 0);
    for (std::int64_t l = 0; l < L; ++l) {
      if (tensor_->dims == 6) {
        function(StridedRows{tensor_, at + l * stride[3], P, 2, stride[4], stride[5]}, 2 * l * P);
      } else {
        function(StridedRows{tensor_, at + l * stride[3], 1, P, 0, stride[4]}, l * P);
      }
    }
  }

  const TensorView* tensor_;
  std::int64_t b_, q_, n_, count_;
  bool together_, in_place_;
};

template <class F>
class PointReader {
 public:
  static constexpr int kLanes = kPointLanes<F>;
  using Lanes = PointLanes<F>;

  /// The tables of levels lie in `arena`; over a null pointer it only counts.
  PointReader(const MSDeformAttnArgs& args, ScratchArena& arena)
      : reference_(&args.reference),
        locations_(args.locations),
        weights_(args.weights),
        grad_locations_(args.grad_locations),
        grad_weights_(args.grad_weights),
        L_(args.weights.shape[3]),
        P_(args.weights.shape[4]),
        count_(L_ * P_),
        padded_((count_ + kLanes - 1) / kLanes * kLanes),
        last_(padded_ - kLanes),
        last_pairs_(static_cast<int>(2 * (count_ - last_))),
        last_more_pairs_(static_cast<int>(2 * (count_ - last_) - kLanes)),
        last_numbers_(static_cast<int>(count_ - last_)),
        from_offsets_(args.form == MSDeformAttnArgs::Form::kOffsets),
        empty_levels_(false) {
    for (F** array : {&width_, &height_, &scale_x_, &scale_y_, &padding_})
      *array = arena.take<F>(padded_);
    for (const MSDeformAttnLevel& level : args.levels)
      empty_levels_ = empty_levels_ || level.width == 0 || level.height == 0;
    if (!width_) return;
    for (std::int64_t i = 0; i < padded_; ++i) {
      const bool real = i < count_;
      const MSDeformAttnLevel level =
          real ? args.levels[static_cast<std::size_t>(i / P_)] : MSDeformAttnLevel{0, 0};
      width_[i] = static_cast<F>(level.width);
      height_[i] = static_cast<F>(level.height);
      scale_x_[i] = from_offsets_ ? F(1) : width_[i];
      scale_y_[i] = from_offsets_ ? F(1) : height_[i];
      padding_[i] = real ? F(0) : -static_cast<F>(__builtin_inff());
    }
  }

  std::int64_t levels() const { return L_; }
  std::int64_t points_per_level() const { return P_; }
  std::int64_t count() const { return count_; }
  std::int64_t padded() const { return padded_; }

  // Of kLanes points from `first` on: the level's size, and pixels per unit of what the caller
  // passes.
  ALIGNMASK_HOST_DEVICE Lanes width(std::int64_t first) const {
    return load<Lanes>(width_ + first);
  }
  ALIGNMASK_HOST_DEVICE Lanes height(std::int64_t first) const {
    return load<Lanes>(height_ + first);
  }
  ALIGNMASK_HOST_DEVICE Lanes scale_x(std::int64_t first) const {
    return load<Lanes>(scale_x_ + first);
  }
  ALIGNMASK_HOST_DEVICE Lanes scale_y(std::int64_t first) const {
    return load<Lanes>(scale_y_ + first);
  }

  PointRow<F> cut_row(ScratchArena& arena) const {
    PointRow<F> row;
    for (F** array : {&row.origin_x, &row.origin_y, &row.numbers, &row.weight, &row.grad_x,
                      &row.grad_y, &row.grad_weight})
      *array = arena.take<F>(padded_);
    row.pairs = arena.take<F>(2 * padded_);
    return row;
  }

  /// Before read() of this query: what its heads share.
  ALIGNMASK_HOST_DEVICE void start_query(std::int64_t b, std::int64_t q,
                                         const PointRow<F>& row) const {
    const bool one_place = !from_offsets_ || reference_->strides[2] == 0;
    const Place place = from_offsets_ && L_ > 0 ? reference_place(b, q, 0) : Place{0, 0};
    // Beyond the last point, where width and height are 0, an infinite place must not make a NaN.
    for (std::int64_t i = 0; i < padded_; i += kLanes) {
      const Lanes w = width(i), h = height(i);
      store(row.origin_x + i, (w > 0 ? place.x * w : Lanes{}) - F(0.5));
      store(row.origin_y + i, (h > 0 ? place.y * h : Lanes{}) - F(0.5));
    }
    if (one_place) return;
    for (std::int64_t l = 0, i = 0; l < L_; ++l) {
      const Place own = reference_place(b, q, l);
      for (const std::int64_t end = i + P_; i < end; ++i) {
        row.origin_x[i] = own.x * width_[i] - F(0.5);
        row.origin_y[i] = own.y * height_[i] - F(0.5);
      }
    }
  }

  /// The numbers of one head: in place, or copied into the row's buffers.
  struct Head {
    const F *pairs, *numbers;
  };

  /// Before pack() of this head: finds its numbers; with offsets: fills row.weight.
  ALIGNMASK_HOST_DEVICE Head start_head(std::int64_t b, std::int64_t q, std::int64_t n,
                                        const PointRow<F>& row) const {
    const Head head = {locations_.place(b, q, n, row.pairs), weights_.place(b, q, n, row.numbers)};
    if (!locations_.in_place()) locations_.load(b, q, n, row.pairs);
    if (!weights_.in_place()) weights_.load(b, q, n, row.numbers);
    if (from_offsets_) softmax(head.numbers, row.weight);
    return head;
  }

  /// kLanes points from `i` on.
  ALIGNMASK_HOST_DEVICE PointPack<F> pack(const Head& head, std::int64_t i,
                                          const PointRow<F>& row) const {
    PointPack<F> pack;
    if (i < last_) {
      split_pairs(load<Lanes>(head.pairs + 2 * i), load<Lanes>(head.pairs + 2 * i + kLanes),
                  &pack.x, &pack.y);
    } else {
      split_pairs(last_pairs_.load(head.pairs + 2 * i),
                  last_more_pairs_.load(head.pairs + 2 * i + kLanes), &pack.x, &pack.y);
    }
    pack.x = pack.x * scale_x(i) + load<Lanes>(row.origin_x + i);
    pack.y = pack.y * scale_y(i) + load<Lanes>(row.origin_y + i);
    pack.weight = from_offsets_ ? load<Lanes>(row.weight + i) : numbers(head.numbers, i);
    if (empty_levels_) leave_empty_levels(i, &pack);
    return pack;
  }

  /// Turns the gradient of the attention weights into that of what the caller passed, and writes
  /// all to the caller's tensors.
  ALIGNMASK_HOST_DEVICE void write_gradients(std::int64_t b, std::int64_t q, std::int64_t n,
                                             const PointRow<F>& row) const {
    if (from_offsets_) softmax_gradient(row);
    F* pairs = grad_locations_.place(b, q, n, row.pairs);
    F* numbers = grad_weights_.place(b, q, n, row.numbers);
    for (std::int64_t i = 0; i < padded_; i += kLanes) {
      Lanes first, second;
      join_pairs(load<Lanes>(row.grad_x + i), load<Lanes>(row.grad_y + i), &first, &second);
      if (i < last_) {
        store(pairs + 2 * i, first);
        store(pairs + 2 * i + kLanes, second);
        store(numbers + i, load<Lanes>(row.grad_weight + i));
      } else {
        last_pairs_.store(pairs + 2 * i, first);
        last_more_pairs_.store(pairs + 2 * i + kLanes, second);
        last_numbers_.store(numbers + i, load<Lanes>(row.grad_weight + i));
      }
    }
    if (grad_locations_.present() && !grad_locations_.in_place())
      grad_locations_.save(b, q, n, row.pairs);
    if (grad_weights_.present() && !grad_weights_.in_place())
      grad_weights_.save(b, q, n, row.numbers);
  }

  ALIGNMASK_HOST_DEVICE void prefetch(std::int64_t b, std::int64_t q, std::int64_t n) const {
    locations_.prefetch(b, q, n);
    weights_.prefetch(b, q, n);
    grad_locations_.prefetch(b, q, n);
    grad_weights_.prefetch(b, q, n);
  }

  /// Points of empty levels get no gradient, whatever the output's is.
  void zero_empty_levels(const PointRow<F>& row) const {
    if (!empty_levels_) return;
    for (std::int64_t i = 0; i < count_; ++i)
      if (width_[i] == 0 || height_[i] == 0) row.grad_x[i] = row.grad_y[i] = row.grad_weight[i] = 0;
  }

 private:
  struct Place {
    F x, y;
  };
  ALIGNMASK_HOST_DEVICE Place reference_place(std::int64_t b, std::int64_t q,
                                              std::int64_t l) const {
    const std::int64_t* stride = reference_->strides;
    const std::int64_t at = b * stride[0] + q * stride[1] + l * stride[2];
    return {float_at<F>(*reference_, at), float_at<F>(*reference_, at + stride[3])};
  }

  /// Points of empty levels get a position and a weight that are finite: they must not make a NaN
  /// of their zeros.
  ALIGNMASK_HOST_DEVICE void leave_empty_levels(std::int64_t i, PointPack<F>* pack) const {
    const auto there = (width(i) > 0) & (height(i) > 0);
    pack->x = there ? pack->x : Lanes{};
    pack->y = there ? pack->y : Lanes{};
    pack->weight = there ? pack->weight : Lanes{};
  }

  ALIGNMASK_HOST_DEVICE Lanes numbers(const F* numbers, std::int64_t i) const {
    return i < last_ ? load<Lanes>(numbers + i) : last_numbers_.load(numbers + i);
  }

  /// exp() of less is not a normal number
  static constexpr F kLeastExponent = sizeof(F) == 8 ? F(-708) : F(-87);

  ALIGNMASK_HOST_DEVICE void softmax(const F* logits, F* weight) const {
    Lanes largest = Lanes{} - static_cast<F>(__builtin_inff()), sum{};
    for (std::int64_t i = 0; i < padded_; i += kLanes) {
      const Lanes logit = numbers(logits, i) + load<Lanes>(padding_ + i);
      store(weight + i, logit);
      largest = logit > largest ? logit : largest;
    }
    const Lanes top = Lanes{} + max_of_lanes<F, kLanes>(largest);
    for (std::int64_t i = 0; i < padded_; i += kLanes) {
      const Lanes logit = load<Lanes>(weight + i) - top, zero{};
      // subnormal numbers are slow; padding is among them
      const auto tiny = logit < kLeastExponent;
      const Lanes power = tiny ? zero : exp_of_negative(tiny ? zero : logit);
      store(weight + i, power);
      sum += power;
    }
    const F scale = 1 / sum_of_lanes<F, kLanes>(sum);
    for (std::int64_t i = 0; i < padded_; i += kLanes)
      store(weight + i, load<Lanes>(weight + i) * scale);
  }

  ALIGNMASK_HOST_DEVICE void softmax_gradient(const PointRow<F>& row) const {
    Lanes sum{};
    for (std::int64_t i = 0; i < padded_; i += kLanes)
      sum += load<Lanes>(row.weight + i) * load<Lanes>(row.grad_weight + i);
    const F mean = sum_of_lanes<F, kLanes>(sum);
    for (std::int64_t i = 0; i < padded_; i += kLanes)
      store(row.grad_weight + i,
            load<Lanes>(row.weight + i) * (load<Lanes>(row.grad_weight + i) - mean));
  }

  const TensorView* reference_;
  PointTensor<F> locations_, weights_, grad_locations_, grad_weights_;
  // last_: the last pack of points, which may be incomplete
  std::int64_t L_, P_, count_, padded_, last_;
  FirstLanes<F, kLanes> last_pairs_, last_more_pairs_, last_numbers_;
  bool from_offsets_, empty_levels_;
  F *width_, *height_, *scale_x_, *scale_y_;
  F* padding_;  // added to logits: beyond the last point, exp() of it is 0
};

}  // namespace alignmask::ALIGNMASK_ISA
