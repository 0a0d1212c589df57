// What a fuzzer makes of bytes: one call of an op on the CPU, with tensors of any shape, layout and
// content, whose memory ends exactly where they end. A call may throw ValueError or TypeError;
// whatever else happens is a fault, which a sanitizer sees.
//
// Linked with libFuzzer (run.sh), it looks for such bytes; linked with replay.cpp, it repeats those
// that were found (ctest).
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <vector>

#include "common/check.h"
#include "common/cpu/dispatch.h"
#include "mask_iou/mask_iou.h"
#include "mask_points/mask_points.h"
#include "mask_rle/mask_rle.h"
#include "masked_point_pool/masked_point_pool.h"
#include "ms_deform_attn/ms_deform_attn.h"
#include "quality_focal_loss/quality_focal_loss.h"

namespace {

using namespace alignmask;

/// Numbers out of the fuzzer's bytes, zeros behind their end.
class Source {
 public:
  Source(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  std::uint8_t byte() {
    if (at_ == size_) return 0;
    return data_[at_++];
  }
  /// 0 .. below - 1
  int pick(int below) { return byte() % below; }
  bool rarely() { return byte() == 0xff; }
  std::int64_t word() {
    std::uint64_t word = 0;
    for (int i = 0; i < 8; ++i) word = word << 8 | byte();
    return static_cast<std::int64_t>(word);
  }
  void fill(std::uint8_t* memory, std::size_t bytes) {
    const std::size_t rest = size_ - at_, given = std::min(bytes, rest);
    if (given) std::memcpy(memory, data_ + at_, given);
    at_ += given;
    // The rest repeats what there was, so that few bytes make large tensors that are not empty.
    for (std::size_t i = given; i < bytes; ++i) {
      memory[i] = size_ ? data_[(i * 7 + at_) % size_] : std::uint8_t{0};
    }
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_, at_ = 0;
};

class Call {
 public:
  explicit Call(Source& source) : source_(source) {}

  int size(int below) { return source_.pick(below); }

  DType one_of(std::initializer_list<DType> allowed) {
    if (source_.rarely()) return static_cast<DType>(source_.pick(8));
    return allowed.begin()[source_.pick(static_cast<int>(allowed.size()))];
  }

  /// Any floating-point numbers.
  TensorView input(DType dtype, std::initializer_list<int> shape) {
    return make(dtype, shape, true);
  }
  TensorView output(DType dtype, std::initializer_list<int> shape) {
    return make(dtype, shape, false);
  }
  /// Now and then there is none.
  TensorView optional(DType dtype, std::initializer_list<int> shape) {
    return source_.pick(3) ? output(dtype, shape) : TensorView{};
  }

  /// Integers, most of them in [low, high).
  TensorView indices(int length, int low, int high) {
    TensorView view = input(source_.pick(2) ? DType::kInt64 : DType::kInt32, {length});
    const int range = std::max(1, high - low);
    for (std::int64_t i = 0; view.dims == 1 && i < view.shape[0]; ++i) {
      const std::int64_t value = source_.rarely() ? source_.word() : low + source_.pick(range);
      const std::int64_t at = i * view.strides[0];
      if (view.dtype == DType::kInt64) static_cast<std::int64_t*>(view.data)[at] = value;
      if (view.dtype == DType::kInt32) {
        static_cast<std::int32_t*>(view.data)[at] = static_cast<std::int32_t>(value);
      }
    }
    return view;
  }

  /// Numbers near [0, 1], where points are.
  TensorView places(DType dtype, std::initializer_list<int> shape) {
    TensorView view = input(dtype, shape);
    if (source_.pick(4) == 0) return view;  // any bits
    auto* memory = memories_.back().get();
    const std::int64_t count = bytes_.back() / element_bytes(dtype);
    for (std::int64_t i = 0; i < count; ++i) {
      const double value = (source_.pick(200) - 30) / 140.0;
      if (dtype == DType::kFloat32) reinterpret_cast<float*>(memory)[i] = static_cast<float>(value);
      if (dtype == DType::kFloat64) reinterpret_cast<double*>(memory)[i] = value;
    }
    return view;
  }

 private:
  TensorView make(DType dtype, std::initializer_list<int> shape, bool is_input) {
    TensorView view;
    view.dtype = dtype;
    view.present = !source_.rarely();
    view.read_only = source_.rarely();
    view.dims = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), view.shape);
    if (source_.rarely()) ++view.shape[source_.pick(std::max(1, view.dims))];
    if (source_.rarely()) view.dims = source_.pick(TensorView::kMaxDims + 1);

    // Strides: of a permuted tensor, some of them wider, turned around or (of an input) 0.
    int order[TensorView::kMaxDims];
    for (int i = 0; i < view.dims; ++i) order[i] = view.dims - 1 - i;
    const int layout = source_.pick(8);
    if (layout == 1) std::reverse(order, order + view.dims);
    if (layout == 2 && view.dims > 1) std::swap(order[0], order[source_.pick(view.dims)]);
    std::int64_t stride = 1, first = 0, last = 0;
    for (int i = 0; i < view.dims; ++i) {
      const int dim = order[i];
      const std::int64_t reach = std::max<std::int64_t>(0, view.shape[dim] - 1);
      if (layout == 3) stride *= 1 + source_.pick(3);
      view.strides[dim] = stride;
      stride *= std::max<std::int64_t>(1, view.shape[dim]);
      if (layout == 4 && source_.pick(2)) view.strides[dim] = -view.strides[dim];
      if (layout == 5 && is_input && source_.pick(2)) view.strides[dim] = 0;
      (view.strides[dim] < 0 ? first : last) += reach * view.strides[dim];
    }
    const std::int64_t bytes = view.elements() ? (last - first + 1) * element_bytes(dtype) : 0;
    if (!is_input && source_.rarely() && !memories_.empty() && bytes_.back() >= bytes) {
      view.data = memories_.back().get() - first * element_bytes(dtype);  // shared with another
      return view;
    }
    memories_.emplace_back(
        new std::uint8_t[static_cast<std::size_t>(std::max<std::int64_t>(bytes, 0))]);
    bytes_.push_back(bytes);
    source_.fill(memories_.back().get(), static_cast<std::size_t>(bytes));
    view.data = memories_.back().get() - first * element_bytes(dtype);
    return view;
  }

  Source& source_;
  std::vector<std::unique_ptr<std::uint8_t[]>> memories_;
  std::vector<std::int64_t> bytes_;
};

DType points_beside(DType dtype, Source& source) {
  const bool half = dtype == DType::kFloat16 || dtype == DType::kBFloat16;
  return half && source.pick(2) ? DType::kFloat32 : dtype;
}

void fuzz_ms_deform_attn(Source& source, Call& call) {
  MSDeformAttnArgs args;
  const bool offsets = source.pick(2);
  args.form = offsets ? MSDeformAttnArgs::Form::kOffsets : MSDeformAttnArgs::Form::kLocations;
  const int B = call.size(3), N = call.size(4), D = source.pick(2) ? 32 : call.size(40),
            Q = source.pick(2) ? call.size(5) : call.size(70), L = call.size(4), P = call.size(6);
  int S = 0;
  for (int l = 0; l < L; ++l) {
    const int height = call.size(9), width = call.size(9);
    args.levels.push_back({source.rarely() ? source.word() : height, width});
    S += height * width;
  }
  const DType dtype = call.one_of(kFloats), other = points_beside(dtype, source);
  args.value = call.input(dtype, {B, S, N, D});
  args.locations = call.places(other, {B, Q, N, L, P, 2});
  args.weights = call.places(other, {B, Q, N, L, P});
  if (offsets) args.reference = call.places(other, {B, Q, L, 2});
  args.threads = 1 + source.pick(2);
  args.out = call.output(dtype, {B, Q, N * D});
  ms_deform_attn_forward(args);
  args.grad_out = call.input(dtype, {B, Q, N * D});
  args.grad_value = call.optional(dtype, {B, S, N, D});
  args.grad_locations = call.optional(other, {B, Q, N, L, P, 2});
  args.grad_weights = call.optional(other, {B, Q, N, L, P});
  if (offsets) args.grad_reference = call.optional(other, {B, Q, L, 2});
  ms_deform_attn_backward(args);
}

void fuzz_masked_point_pool(Source& source, Call& call) {
  MaskedPointPoolArgs args;
  const int B = call.size(4), C = source.pick(2) ? call.size(70) : call.size(9), H = call.size(9),
            W = call.size(9), G = call.size(6), T = call.size(4), K = call.size(80);
  const DType dtype = call.one_of(kFloats), other = points_beside(dtype, source);
  args.features = call.input(dtype, {B, C, H, W});
  args.masks = call.input(call.one_of(kMasks), {G, call.size(20), call.size(20)});
  args.owner = call.indices(G, 0, B);
  args.points = call.places(other, {B, T, K, 2});
  args.divide_by_points = source.pick(2);
  args.threads = 1 + source.pick(2);
  args.pooled = call.output(dtype, {G, T, C});
  args.weight = call.output(arithmetic_dtype(dtype), {G, T});
  masked_point_pool_forward(args);
  args.grad_pooled = call.input(dtype, {G, T, C});
  args.grad_features = call.output(dtype, {B, C, H, W});
  masked_point_pool_backward(args);
}

void fuzz_mask_iou(Source& source, Call& call) {
  MaskIouArgs args;
  const int B = call.size(4), Q = source.pick(2) ? call.size(5) : call.size(40), h = call.size(20),
            w = call.size(70), scale = source.rarely() ? call.size(9) : 1 + source.pick(4),
            G = call.size(6);
  const DType dtype = call.one_of(kFloats);
  args.predictions = call.input(dtype, {B, Q, h, w});
  args.targets = call.input(call.one_of(kMasks), {G, h * scale, w * scale});
  args.owner = call.indices(G, 0, B);
  args.threshold = source.pick(2) ? 0 : (source.pick(100) - 50) / 10.0;
  args.threads = 1 + source.pick(2);
  args.iou = call.output(arithmetic_dtype(dtype), {G, Q});
  mask_iou_forward(args);
}

void fuzz_mask_points(Source& source, Call& call) {
  MaskPointsArgs args;
  const int R = call.size(5), H = call.size(20), W = call.size(20), G = call.size(4),
            K = source.pick(2) ? call.size(20) : 4 * call.size(200);
  const DType dtype = call.one_of(kFloats);
  args.logits = call.input(dtype, {R, H, W});
  args.masks = call.input(call.one_of(kMasks), {G, call.size(30), call.size(30)});
  args.index = call.indices(R, 0, G);
  args.seed = source.word();
  args.candidates = source.rarely() ? static_cast<int>(source.word()) % 10000 : 3 * K;
  args.kept = source.pick(2) ? 3 * K / 4 : source.pick(K + 2);
  args.threads = 1 + source.pick(2);
  args.points = call.output(arithmetic_dtype(dtype), {R, K, 2});
  args.sampled = call.output(dtype, {R, K});
  args.targets = call.output(arithmetic_dtype(dtype), {R, K});
  mask_points_forward(args);
  args.grad_sampled = call.input(dtype, {R, K});
  args.grad_logits = call.output(dtype, {R, H, W});
  if (source.pick(4) == 0) args.points = call.places(arithmetic_dtype(dtype), {R, K, 2});
  mask_points_backward(args);
}

void fuzz_mask_rle(Source& source, Call& call) {
  MaskRleArgs args;
  const int N = call.size(5), h = call.size(20), w = call.size(20);
  const DType dtype = call.one_of(kFloats);
  const auto side = [&] {
    return source.rarely() ? static_cast<int>(source.word()) : call.size(90);
  };
  args.logits = call.input(dtype, {N, h, w});
  args.height = call.size(90);
  args.width = call.size(90);
  args.padded_height = source.pick(3) ? args.height : side();
  args.padded_width = source.pick(3) ? args.width : side();
  args.valid_height = source.pick(3) ? args.padded_height : side();
  args.valid_width = source.pick(3) ? args.padded_width : side();
  args.threads = 1 + source.pick(2);
  args.runs = call.output(DType::kInt32, {N, args.width});
  args.area = call.output(DType::kInt64, {N});
  args.box = call.output(DType::kInt64, {N, 4});
  args.probability = call.output(arithmetic_dtype(dtype), {N});
  mask_rle_forward(args);
  // The ends of these runs, now and then one that they do not have.
  std::int64_t total = 0;
  std::vector<std::int64_t> ends(static_cast<std::size_t>(args.runs.elements()));
  for (std::int64_t n = 0; n < args.runs.shape[0]; ++n) {
    for (std::int64_t x = 0; x < args.runs.shape[1]; ++x) {
      total += static_cast<const std::int32_t*>(
          args.runs.data)[n * args.runs.strides[0] + x * args.runs.strides[1]];
      ends[static_cast<std::size_t>(n * args.runs.shape[1] + x)] =
          source.rarely() ? source.word() : total;
    }
  }
  args.ends = args.runs;
  args.ends.dtype = DType::kInt64;
  args.ends.data = ends.data();
  args.ends.strides[0] = args.runs.shape[1];
  args.ends.strides[1] = 1;
  args.counts =
      call.output(DType::kInt32, {static_cast<int>(std::min<std::int64_t>(total, 1 << 20)) +
                                  (source.rarely() ? source.pick(3) : 0)});
  mask_rle_counts_forward(args);
}

void fuzz_quality_focal_loss(Source& source, Call& call) {
  QualityFocalLossArgs args;
  const int R = call.size(40), C = call.size(100);
  const DType dtype = call.one_of(kFloats);
  args.logits = call.input(dtype, {R, C});
  args.label = call.indices(R, -1, C);
  args.iou = call.places(call.one_of(kFloats), {R});
  args.gamma = source.pick(2) ? 2 : source.pick(50) / 10.0;
  args.theta = source.pick(2) ? 0.5 : source.pick(120) / 100.0 - 0.1;
  args.threads = 1 + source.pick(2);
  args.loss = call.output(dtype, {R});
  args.grad_logits = call.optional(arithmetic_dtype(dtype), {R, C});
  quality_focal_loss_forward(args);
}

constexpr void (*kOps[])(Source&, Call&) = {fuzz_ms_deform_attn, fuzz_masked_point_pool,
                                            fuzz_mask_iou,       fuzz_mask_points,
                                            fuzz_mask_rle,       fuzz_quality_focal_loss};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Source source(data, size);
  const auto isas = available_cpu_isas();
  select_cpu_isa(isas[static_cast<std::size_t>(source.pick(static_cast<int>(isas.size())))]);
  const auto op = kOps[source.pick(static_cast<int>(std::size(kOps)))];
  Call call(source);
  try {
    op(source, call);
  } catch (const ValueError&) {
  } catch (const TypeError&) {
  }
  return 0;
}
