// The CUDA kernels under a sanitizer, without Python: `sanitize ops` runs all of them on tensors
// that end where they end, `sanitize bug <name>` runs a planted bug. Fails if an output is not
// written or not finite.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/half.h"
#include "mask_iou/cuda/launches.h"
#include "mask_points/cuda/launches.h"
#include "mask_rle/cuda/launches.h"
#include "masked_point_pool/cuda/launches.h"
#include "ms_deform_attn/cuda/launches.h"
#include "planted.h"
#include "quality_focal_loss/cuda/launches.h"
#include "runtime.h"

using namespace alignmask;

namespace {

std::mt19937 generator;

/// A contiguous tensor in memory of its own, exactly as long as it has to be.
struct Tensor {
  std::unique_ptr<char[]> memory;
  TensorView view;

  Tensor(DType dtype, const std::vector<std::int64_t>& shape) {
    view.dtype = dtype;
    view.present = true;
    view.dims = static_cast<int>(shape.size());
    std::int64_t stride = 1;
    for (int i = view.dims - 1; i >= 0; --i) {
      view.shape[i] = shape[static_cast<std::size_t>(i)];
      view.strides[i] = stride;
      stride *= view.shape[i];
    }
    memory.reset(new char[static_cast<std::size_t>(bytes())]);
    view.data = memory.get();
    std::memset(view.data, 0xff, static_cast<std::size_t>(bytes()));  // NaN
  }

  std::int64_t bytes() const { return view.elements() * element_bytes(view.dtype); }

  Tensor& fill(double low, double high) {
    std::uniform_real_distribution<double> number(low, high);
    for (std::int64_t i = 0; i < view.elements(); ++i) set(i, number(generator));
    return *this;
  }

  void set(std::int64_t i, double x) {
    switch (view.dtype) {
      case DType::kFloat32:
        static_cast<float*>(view.data)[i] = static_cast<float>(x);
        break;
      case DType::kFloat64:
        static_cast<double*>(view.data)[i] = x;
        break;
      case DType::kFloat16:
        static_cast<Half*>(view.data)[i] = baseline::to_half(static_cast<float>(x));
        break;
      case DType::kBFloat16:
        static_cast<BFloat16*>(view.data)[i] = baseline::to_bfloat16(static_cast<float>(x));
        break;
      case DType::kInt64:
        static_cast<std::int64_t*>(view.data)[i] = static_cast<std::int64_t>(std::floor(x));
        break;
      default:
        static_cast<unsigned char*>(view.data)[i] = x > 0;
    }
  }

  double at(std::int64_t i) const {
    switch (view.dtype) {
      case DType::kFloat32:
        return static_cast<const float*>(view.data)[i];
      case DType::kFloat64:
        return static_cast<const double*>(view.data)[i];
      case DType::kFloat16:
        return baseline::to_float(static_cast<const Half*>(view.data)[i]);
      default:
        return baseline::to_float(static_cast<const BFloat16*>(view.data)[i]);
    }
  }

  void expect_finite(const char* what) const {
    for (std::int64_t i = 0; i < view.elements(); ++i) {
      if (std::isfinite(at(i))) continue;
      std::printf("%s[%lld] is %g\n", what, static_cast<long long>(i), at(i));
      std::exit(1);
    }
  }
};

DType arithmetic(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

Tensor workspace_of(std::int64_t bytes) { return Tensor(DType::kUInt8, {bytes}); }

// Sizes are such that every loop of every kernel goes round more than once: what one round leaves
// in shared memory must not meet the next.

void run_ms_deform_attn(DType dtype, std::int64_t D, bool deterministic) {
  const std::int64_t B = 1, N = 2, Q = deterministic ? 70 : 5, P = 5;
  MSDeformAttnArgs args;
  args.form = MSDeformAttnArgs::Form::kOffsets;
  args.levels = {{3, 4}, {2, 5}};
  const auto L = static_cast<std::int64_t>(args.levels.size()), S = std::int64_t{22};
  Tensor value(dtype, {B, S, N, D}), offsets(dtype, {B, Q, N, L, P, 2}),
      logits(dtype, {B, Q, N, L, P}), reference(dtype, {B, Q, L, 2}), out(dtype, {B, Q, N * D}),
      grad_out(dtype, {B, Q, N * D}), grad_value(dtype, {B, S, N, D}),
      grad_offsets(dtype, {B, Q, N, L, P, 2}), grad_logits(dtype, {B, Q, N, L, P}),
      grad_reference(dtype, {B, Q, L, 2});
  args.value = value.fill(-1, 1).view;
  args.locations = offsets.fill(-2, 2).view;
  args.weights = logits.fill(-1, 1).view;
  args.reference = reference.fill(0, 1).view;
  args.out = out.view;
  const LaunchTarget target = {"ms_deform_attn", {}, nullptr};
  run(target, ms_deform_attn_forward_launches(args));
  out.expect_finite("out");
  args.grad_out = grad_out.fill(-1, 1).view;
  args.grad_value = grad_value.view;
  args.grad_locations = grad_offsets.view;
  args.grad_weights = grad_logits.view;
  args.grad_reference = grad_reference.view;
  args.deterministic = deterministic;
  const Tensor workspace = workspace_of(ms_deform_attn_backward_workspace_bytes(args));
  args.workspace = workspace.view;
  run(target, ms_deform_attn_backward_launches(args));
  grad_value.expect_finite("grad_value");
  grad_offsets.expect_finite("grad_offsets");
  grad_logits.expect_finite("grad_logits");
  grad_reference.expect_finite("grad_reference");
}

void run_masked_point_pool(DType dtype, std::int64_t C, bool channels_last, bool deterministic) {
  const std::int64_t B = 2, H = 5, W = 4, G = 20, T = 2, K = 290;
  MaskedPointPoolArgs args;
  Tensor features(dtype, channels_last ? std::vector<std::int64_t>{B, H, W, C}
                                       : std::vector<std::int64_t>{B, C, H, W});
  Tensor grad_features(dtype,
                       std::vector<std::int64_t>(features.view.shape, features.view.shape + 4));
  Tensor masks(DType::kBool, {G, 6, 7}), owner(DType::kInt64, {G}), points(dtype, {B, T, K, 2}),
      pooled(dtype, {G, T, C}), weight(arithmetic(dtype), {G, T}), grad_pooled(dtype, {G, T, C});
  const auto as_BCHW = [&](TensorView view) {
    if (!channels_last) return view;
    const TensorView from = view;
    const int order[] = {0, 3, 1, 2};
    for (int i = 0; i < 4; ++i) {
      view.shape[i] = from.shape[order[i]];
      view.strides[i] = from.strides[order[i]];
    }
    return view;
  };
  args.features = as_BCHW(features.fill(-1, 1).view);
  args.masks = masks.fill(-1, 1).view;
  args.owner = owner.fill(0, 2).view;
  args.points = points.fill(-0.1, 1.1).view;
  args.pooled = pooled.view;
  args.weight = weight.view;
  const LaunchTarget target = {"masked_point_pool", {}, nullptr};
  run(target, masked_point_pool_forward_launches(args));
  pooled.expect_finite("pooled");
  weight.expect_finite("weight");
  args.grad_pooled = grad_pooled.fill(-1, 1).view;
  args.grad_features = as_BCHW(grad_features.view);
  args.deterministic = deterministic;
  const Tensor workspace = workspace_of(masked_point_pool_backward_workspace_bytes(args));
  args.workspace = workspace.view;
  run(target, masked_point_pool_backward_launches(args));
  grad_features.expect_finite("grad_features");
}

void run_mask_points(DType dtype, bool deterministic) {
  const std::int64_t R = 2, H = 17, W = 18, G = 3, K = 700;
  Tensor logits(dtype, {R, H, W}), masks(DType::kBool, {G, 6, 7}), index(DType::kInt64, {R}),
      sampled(dtype, {R, K}), targets(arithmetic(dtype), {R, K}),
      points(arithmetic(dtype), {R, K, 2}), grad_sampled(dtype, {R, K}),
      grad_logits(dtype, {R, H, W});
  MaskPointsArgs args;
  args.logits = logits.fill(-1, 1).view;
  args.masks = masks.fill(-1, 1).view;
  args.index = index.fill(0, static_cast<double>(G)).view;
  args.seed = 7;
  args.candidates = 1501;
  args.kept = 333;
  args.sampled = sampled.view;
  args.targets = targets.view;
  args.points = points.view;
  const LaunchTarget target = {"mask_points", {}, nullptr};
  run(target, mask_points_forward_launches(args));
  sampled.expect_finite("sampled");
  targets.expect_finite("targets");
  points.expect_finite("points");
  args.grad_sampled = grad_sampled.fill(-1, 1).view;
  args.grad_logits = grad_logits.view;
  args.deterministic = deterministic;
  const Tensor workspace = workspace_of(mask_points_backward_workspace_bytes(args));
  args.workspace = workspace.view;
  run(target, mask_points_backward_launches(args));
  grad_logits.expect_finite("grad_logits");
}

void run_mask_iou(DType dtype, std::int64_t Q, std::int64_t h, std::int64_t width,
                  std::int64_t scale) {
  const std::int64_t B = 2, G = 40;
  Tensor predictions(dtype, {B, Q, h, width}), targets(DType::kBool, {G, h * scale, width * scale}),
      owner(DType::kInt64, {G}), iou(arithmetic(dtype), {G, Q});
  MaskIouArgs args;
  args.predictions = predictions.fill(-1, 1).view;
  args.targets = targets.fill(-1, 1).view;
  args.owner = owner.fill(0, 2).view;
  args.iou = iou.view;
  const Tensor workspace = workspace_of(mask_iou_forward_workspace_bytes(args));
  args.workspace = workspace.view;
  run({"mask_iou", {}, nullptr}, mask_iou_forward_launches(args));
  iou.expect_finite("iou");
}

void run_mask_rle(DType dtype, int height, int width) {
  const std::int64_t N = 3;
  Tensor logits(dtype, {N, 5, 7}), runs(DType::kInt32, {N, width}), area(DType::kInt64, {N}),
      box(DType::kInt64, {N, 4}), probability(arithmetic(dtype), {N}),
      ends(DType::kInt64, {N, width});
  MaskRleArgs args;
  args.logits = logits.fill(-1, 1).view;
  args.height = height;
  args.width = width;
  args.padded_height = 20;
  args.padded_width = 28;
  args.valid_height = 17;
  args.valid_width = 23;
  args.runs = runs.view;
  args.area = area.view;
  args.box = box.view;
  args.probability = probability.view;
  const Tensor workspace = workspace_of(mask_rle_forward_workspace_bytes(args));
  args.workspace = workspace.view;
  const LaunchTarget target = {"mask_rle", {}, nullptr};
  run(target, mask_rle_forward_launches(args));
  probability.expect_finite("probability");
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < N * width; ++i) {
    total += static_cast<const std::int32_t*>(runs.view.data)[i];
    static_cast<std::int64_t*>(ends.view.data)[i] = total;
  }
  Tensor counts(DType::kInt32, {total});
  args.ends = ends.view;
  args.counts = counts.view;
  const Tensor changes = workspace_of(mask_rle_counts_forward_workspace_bytes(args));
  args.workspace = changes.view;
  run(target, mask_rle_counts_forward_launches(args));
}

void run_quality_focal_loss(DType dtype, std::int64_t C, double gamma) {
  const std::int64_t R = 35;
  Tensor logits(dtype, {R, C}), label(DType::kInt64, {R}), iou(dtype, {R}), loss(dtype, {R}),
      gradient(arithmetic(dtype), {R, C});
  QualityFocalLossArgs args;
  args.logits = logits.fill(-3, 3).view;
  args.label = label.fill(-1, static_cast<double>(C)).view;
  args.iou = iou.fill(0, 1).view;
  args.gamma = gamma;
  args.loss = loss.view;
  args.grad_logits = gradient.view;
  run({"quality_focal_loss", {}, nullptr}, quality_focal_loss_forward_launches(args));
  loss.expect_finite("loss");
  gradient.expect_finite("gradient");
}

void run_ops() {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16}) {
    for (const bool second : {false, true}) {
      simt::set_order(second ? simt::Order::kShuffled : simt::Order::kAscending, 1);
      simt::set_vector_atomics(second);
      for (const std::int64_t D : {16, 32, 64, 5}) run_ms_deform_attn(dtype, D, second && D == 16);
      for (const std::int64_t C : {8, 3}) run_masked_point_pool(dtype, C, second, second && C == 3);
      run_masked_point_pool(dtype, 8, false, true);
      run_mask_points(dtype, second);
      for (const std::int64_t width : {16, 5})
        for (const std::int64_t scale : {1, 3}) run_mask_iou(dtype, 3, 3, width, scale);
      run_mask_iou(dtype, 18, 20, 45, 4);
      run_mask_rle(dtype, 70, 9);
      run_mask_rle(dtype, 31, 40);
      for (const std::int64_t C : {8, 9}) run_quality_focal_loss(dtype, C, second ? 2 : 1.5);
    }
  }
}

void run_bug(const std::string& bug) {
  const int count = 200, blocks = 2;
  std::unique_ptr<float[]> x(new float[count]), sums(new float[blocks]);
  std::unique_ptr<int[]> positive(new int[blocks]);
  for (int i = 0; i < count; ++i) x[static_cast<std::size_t>(i)] = static_cast<float>(i);
  run_planted(bug, x.get(), count, sums.get(), positive.get());
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "ops") {
    run_ops();
  } else if (what == "bug" && argc > 2) {
    run_bug(argv[2]);
  } else {
    std::puts("usage: sanitize ops | sanitize bug <name>");
    return 2;
  }
  std::puts("nothing found");
}
