// The CPU kernels. A task is a row: its pixels are copied with a border of zeros, as float32 or
// float64, into memory that fits a core's cache, as do the sizes of all candidates' samples. The
// candidates themselves are not kept: those that are chosen are drawn again.
#include <algorithm>
#include <type_traits>

#include "common/arena.h"
#include "common/cpu/dispatch.h"
#include "common/cpu/parallel_for.h"
#include "lanes.h"
#include "mask_points/mask_points.h"
#include "select.h"

namespace alignmask::ALIGNMASK_ISA {

void mask_points_forward_cpu(const MaskPointsArgs& args);
void mask_points_backward_cpu(const MaskPointsArgs& args);

namespace {

// samples below which another thread does not pay
constexpr std::int64_t kWorkPerThread = 20'000;

/// `count` rounded up to whole registers of points.
std::int64_t in_lanes(std::int64_t count) {
  return (count + kPointLanes - 1) / kPointLanes * kPointLanes;
}

/// How far a sample is from 0, as an integer; NaN is farthest.
template <class F>
using Key = std::conditional_t<sizeof(F) == 4, std::uint32_t, std::uint64_t>;

template <class F>
ALIGNMASK_HOST_DEVICE Pack<Key<F>, kPointLanes> keys_of(NumberLanes<F> sample) {
  using Keys = Pack<Key<F>, kPointLanes>;
  return (reinterpret_cast<Keys>(sample) << 1) | reinterpret_cast<Keys>(sample != sample);
}

/// The [1, K] or [K, 2] of a tensor's row r, as one row where they lie together.
StridedRows row_of(const TensorView& tensor, std::int64_t r) {
  const std::int64_t columns = tensor.dims == 3 ? tensor.shape[2] : 1, count = tensor.shape[1];
  const std::int64_t offset = r * tensor.strides[0];
  if (together(tensor, 1)) return {&tensor, offset, 1, count * columns, 0, 1};
  if (columns == 1) return {&tensor, offset, 1, count, 0, tensor.strides[1]};
  return {&tensor, offset, count, columns, tensor.strides[1], tensor.strides[2]};
}

/// What both passes share.
template <class F>
struct Pass {
  const MaskPointsArgs& args;
  std::int64_t R, H, W, K, K_lanes;
  std::int64_t worker_bytes = 0;
  unsigned char* memory = nullptr;

  Pass(const MaskPointsArgs& args, const TensorView& maps)
      : args(args),
        R(maps.shape[0]),
        H(maps.shape[1]),
        W(maps.shape[2]),
        K(args.points.shape[1]),
        K_lanes(in_lanes(K)) {}

  void run(double work, void (*task)(void*, std::int64_t, int), void* self) {
    const int threads = threads_for(work, kWorkPerThread, R, args.threads);
    const Scratch scratch(static_cast<std::size_t>(threads * worker_bytes));
    memory = static_cast<unsigned char*>(scratch.data());
    parallel_for(R, threads, task, self);
  }
};

template <class F>
struct Forward : Pass<F> {
  using Base = Pass<F>;
  using Base::args, Base::H, Base::W, Base::K, Base::K_lanes;
  std::int64_t M, kept;

  explicit Forward(const MaskPointsArgs& args)
      : Base(args, args.logits),
        M(args.candidates),
        kept(args.kept) {
    cut(ScratchArena(nullptr), &this->worker_bytes);
  }

  /// A worker's memory.
  struct Buffers {
    F* map;              // see PaddedMap
    Key<F>*keys, *rest;  // [M]
    std::uint32_t* histogram;
    std::int32_t* index;  // [K]: the chosen candidates
    F *x, *y, *sampled;   // [K]
    F *points, *targets;  // [K, 2], [K]
  };

  Buffers cut(ScratchArena arena, std::int64_t* bytes = nullptr) const {
    Buffers buffers;
    buffers.map = arena.take<F>(PaddedMap<F>::elements(H, W));
    buffers.keys = arena.take<Key<F>>(in_lanes(M));
    buffers.rest = arena.take<Key<F>>(M);
    buffers.histogram = arena.take<std::uint32_t>(2 * kDigits);
    buffers.index = arena.take<std::int32_t>(K_lanes);
    buffers.x = arena.take<F>(K_lanes);
    buffers.y = arena.take<F>(K_lanes);
    buffers.sampled = arena.take<F>(K_lanes);
    buffers.points = arena.take<F>(2 * K_lanes);
    buffers.targets = arena.take<F>(K_lanes);
    if (bytes) *bytes = arena.bytes();
    return buffers;
  }

  static void row(void* context, std::int64_t r, int worker) {
    const Forward& self = *static_cast<const Forward*>(context);
    const Buffers buffers = self.cut(ScratchArena(self.memory + worker * self.worker_bytes));
    self.sample_logits(r, buffers);
    self.sample_mask(r, buffers);
    const MaskPointsArgs& args = self.args;
    copy_out(buffers.points, 2, row_of(args.points, r));
    copy_out(buffers.sampled, 0, row_of(args.sampled, r));
    copy_out(buffers.targets, 0, row_of(args.targets, r));
  }

  void sample_logits(std::int64_t r, const Buffers& buffers) const {
    PaddedMap<F> map(buffers.map, H, W);
    map.read(args.logits, r);
    if (kept > 0)
      for (std::int64_t i = 0; i < M; i += kPointLanes)
        store(buffers.keys + i, keys_of<F>(map.sample(candidates_from<F>(i / 2, r, args.seed))));
    select_smallest(buffers.keys, static_cast<std::int32_t>(M), static_cast<std::int32_t>(kept),
                    buffers.rest, buffers.histogram, buffers.index);
    for (std::int64_t k = kept; k < K_lanes; ++k)
      buffers.index[k] = static_cast<std::int32_t>(M + k - kept);
    for (std::int64_t k = 0; k < K; k += kPointLanes) {
      const auto points = candidates_at<F>(buffers.index + k, r, args.seed);
      store(buffers.x + k, points.x);
      store(buffers.y + k, points.y);
      NumberLanes<F> first, second;
      join_pairs(points.x, points.y, &first, &second);
      store(buffers.points + 2 * k, first);
      store(buffers.points + 2 * k + kPointLanes, second);
      store(buffers.sampled + k, map.sample(points));
    }
  }

  void sample_mask(std::int64_t r, const Buffers& buffers) const {
    const TensorView& masks = args.masks;
    const std::int64_t height = masks.shape[1], width = masks.shape[2], down = masks.strides[1],
                       right = masks.strides[2];
    const auto* const pixels = static_cast<const unsigned char*>(masks.data);
    const std::int64_t first = int_at(args.index, r * args.index.strides[0]) * masks.strides[0];
    for (std::int64_t k = 0; k < K; k += kPointLanes) {
      const PointLanes<F> points = {load<NumberLanes<F>>(buffers.x + k),
                                    load<NumberLanes<F>>(buffers.y + k)};
      const auto position = Positions<F>::of(points, width, height);
      Corners<NumberLanes<F>> corner;
      for (int i = 0; i < kPointLanes; ++i) {
        const std::int64_t x = position.left[i], y = position.top[i];
        const std::int64_t at = first + y * down + x * right;
        const bool has_left = x >= 0, has_right = x + 1 < width, has_top = y >= 0,
                   has_bottom = y + 1 < height;
        corner.top_left[i] = has_top && has_left && pixels[at] != 0;
        corner.top_right[i] = has_top && has_right && pixels[at + right] != 0;
        corner.bottom_left[i] = has_bottom && has_left && pixels[at + down] != 0;
        corner.bottom_right[i] = has_bottom && has_right && pixels[at + down + right] != 0;
      }
      store(buffers.targets + k, blend(corner, position.x_part, position.y_part));
    }
  }

  void run() { Base::run(static_cast<double>(this->R) * static_cast<double>(M + K), row, this); }
};

template <class F>
struct Backward : Pass<F> {
  using Base = Pass<F>;
  using Base::args, Base::H, Base::W, Base::K, Base::K_lanes;

  explicit Backward(const MaskPointsArgs& args) : Base(args, args.grad_logits) {
    cut(ScratchArena(nullptr), &this->worker_bytes);
  }

  struct Buffers {
    F* map;       // see PaddedMap
    F* points;    // [K, 2]
    F* gradient;  // [K]
  };

  Buffers cut(ScratchArena arena, std::int64_t* bytes = nullptr) const {
    Buffers buffers;
    buffers.map = arena.take<F>(PaddedMap<F>::elements(H, W));
    buffers.points = arena.take<F>(2 * K_lanes);
    buffers.gradient = arena.take<F>(K_lanes);
    if (bytes) *bytes = arena.bytes();
    return buffers;
  }

  static void row(void* context, std::int64_t r, int worker) {
    const Backward& self = *static_cast<const Backward*>(context);
    const Buffers buffers = self.cut(ScratchArena(self.memory + worker * self.worker_bytes));
    const MaskPointsArgs& args = self.args;
    copy_in(row_of(args.points, r), buffers.points, 2);
    copy_in(row_of(args.grad_sampled, r), buffers.gradient, 0);
    PaddedMap<F> map(buffers.map, self.H, self.W);
    map.clear();
    for (std::int64_t k = 0; k < self.K; k += kPointLanes) {
      const F* const pairs = buffers.points + 2 * k;
      PointLanes<F> points;
      split_pairs(load<NumberLanes<F>>(pairs), load<NumberLanes<F>>(pairs + kPointLanes), &points.x,
                  &points.y);
      map.add(points, buffers.gradient + k,
              static_cast<int>(std::min<std::int64_t>(kPointLanes, self.K - k)));
    }
    map.write(args.grad_logits, r);
  }

  void run() { Base::run(static_cast<double>(this->R) * static_cast<double>(K), row, this); }
};

}  // namespace

void mask_points_forward_cpu(const MaskPointsArgs& args) {
  if (args.sampled.elements() == 0) return;
  args.logits.dtype == DType::kFloat64 ? Forward<double>(args).run() : Forward<float>(args).run();
}

void mask_points_backward_cpu(const MaskPointsArgs& args) {
  if (args.grad_logits.elements() == 0) return;
  args.grad_logits.dtype == DType::kFloat64 ? Backward<double>(args).run()
                                            : Backward<float>(args).run();
}

}  // namespace alignmask::ALIGNMASK_ISA
