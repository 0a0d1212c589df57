// The CPU kernels. Targets are packed into bits once. Then a thread takes a few predictions of an
// image and, band of rows after band of rows, packs their bits and counts those they share with
// every target that reaches into the band. The predictions are read once, and neither they nor
// their upsampled form are ever stored.
//
// An upsampled row is laid out phase by phase: its pixels phase, phase + factor, phase + 2 factor,
// ... in one run of bits. So each run is computed from whole vectors of source pixels. Targets are
// packed in the same order, which makes no difference to their counts.
#include <algorithm>
#include <limits>
#include <vector>

#include "common/arena.h"
#include "common/cpu/bits.h"
#include "common/cpu/dispatch.h"
#include "common/cpu/instances.h"
#include "common/cpu/parallel_for.h"
#include "mask_iou/formula.h"
#include "mask_iou/mask_iou.h"

namespace alignmask::ALIGNMASK_ISA {

void mask_iou_forward_cpu(const MaskIouArgs& args);

namespace {

// worked on together, so that a target's bits are read once for all of them
constexpr std::int64_t kQueries = 8;
constexpr std::int64_t kPixelsPerThread = 200'000;  // below, another thread does not pay
constexpr int kAhead = 8192;  // bytes of a prediction that are prefetched; less is slower
// of one prediction: with the others' they stay in the first-level cache
constexpr std::int64_t kBandWords = 512;

struct Target {
  std::int64_t area = 0, first_row = 0, end_row = 0;  // rows outside [first_row, end_row) are empty
};

template <class F>
struct Forward {
  static constexpr int kLanes = ALIGNMASK_VECTOR_BYTES / sizeof(F);
  using Lanes = Pack<F, kLanes>;

  const MaskIouArgs& args;
  std::int64_t B, Q, h, w, G, H, W, factor;
  std::int64_t run_words, row_words;  // of one phase of a row, and of all
  std::int64_t band_rows;
  F threshold;
  bool direct;  // predicted rows are contiguous F
  InstancesOfImages instances;
  std::vector<UpsamplingPhase<F>> phases;
  std::vector<Target> targets;
  std::uint64_t* target_bits = nullptr;  // [G, H, row_words]
  unsigned char* memory = nullptr;       // [threads, buffer_bytes]
  std::int64_t buffer_bytes = 0;

  explicit Forward(const MaskIouArgs& args)
      : args(args),
        B(args.predictions.shape[0]),
        Q(args.predictions.shape[1]),
        h(args.predictions.shape[2]),
        w(args.predictions.shape[3]),
        G(args.targets.shape[0]),
        H(args.targets.shape[1]),
        W(args.targets.shape[2]),
        factor(h > 0 ? H / h : 1),
        run_words(words_for(w)),
        row_words(factor * run_words),
        band_rows(std::max<std::int64_t>(1, kBandWords / std::max<std::int64_t>(row_words, 1))),
        threshold(static_cast<F>(args.threshold)),
        direct(contiguous<F>(args.predictions, 3)),
        instances(args.owner, B),
        targets(static_cast<std::size_t>(G)) {
    for (std::int64_t p = 0; p < factor; ++p)
      phases.push_back(UpsamplingPhase<F>::of(static_cast<int>(p), static_cast<int>(factor)));
  }

  /// A thread's memory.
  struct Buffers {
    std::uint8_t* bytes;     // [padded_width()]: a target's pixels of one phase, then zeros
    std::uint64_t* bits;     // [kQueries, band_rows, row_words]
    std::int64_t* both;      // [kQueries, most targets of an image]
    F* rows;                 // [2, padded_width()]: source rows that cannot be read in place
    F* blended;              // [1 + padded_width() + 1]
    std::int64_t cached[2];  // which source rows `rows` holds
  };

  std::int64_t padded_width() const { return run_words * kWordBits; }

  // ---- targets

  static void pack_target(void* context, std::int64_t g, int worker) {
    Forward& self = *static_cast<Forward*>(context);
    const TensorView& masks = self.args.targets;
    std::uint8_t* bytes = self.buffers_of(worker).bytes;
    std::uint64_t* bits = self.target_bits + g * self.H * self.row_words;
    Target target;
    for (std::int64_t y = 0; y < self.H; ++y, bits += self.row_words) {
      const auto* row = static_cast<const std::uint8_t*>(masks.data) + g * masks.strides[0] +
                        y * masks.strides[1];
      self.pack_row(row, masks.strides[2], bytes, bits);
      const std::int64_t area = count_bits(bits, self.row_words);
      if (area == 0) continue;
      if (target.area == 0) target.first_row = y;
      target.end_row = y + 1;
      target.area += area;
    }
    self.targets[static_cast<std::size_t>(g)] = target;
  }

  void pack_row(const std::uint8_t* row, std::int64_t stride, std::uint8_t* bytes,
                std::uint64_t* bits) const {
    for (std::int64_t phase = 0; phase < factor; ++phase, row += stride) {
      const std::int64_t step = stride * factor;
      std::int64_t whole = step == 1 ? w / kWordBits : 0;  // words that can be read in place
      for (std::int64_t i = 0; i < whole; ++i) *bits++ = nonzero_word(row + i * kWordBits);
      take_every(row + whole * kWordBits * step, step, w - whole * kWordBits, bytes);
      for (std::int64_t i = whole; i < run_words; ++i)
        *bits++ = nonzero_word(bytes + (i - whole) * kWordBits);
    }
  }

  static void take_every(const std::uint8_t* from, std::int64_t step, std::int64_t count,
                         std::uint8_t* to) {
    switch (step) {  // known steps become vector code
      case 1:
        return take_every_known<1>(from, count, to);
      case 2:
        return take_every_known<2>(from, count, to);
      case 4:
        return take_every_known<4>(from, count, to);
      case 8:
        return take_every_known<8>(from, count, to);
      default:
        for (std::int64_t i = 0; i < count; ++i) to[i] = from[i * step];
    }
  }
  template <int kStep>
  static void take_every_known(const std::uint8_t* from, std::int64_t count, std::uint8_t* to) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = from[i * kStep];
  }

  // ---- predictions

  static void predict(void* context, std::int64_t task, int worker) {
    const Forward& self = *static_cast<const Forward*>(context);
    const std::int64_t blocks = (self.Q + kQueries - 1) / kQueries;
    self.block(task / blocks, task % blocks * kQueries, self.buffers_of(worker));
  }

  void block(std::int64_t b, std::int64_t first_query, Buffers buffers) const {
    const std::int64_t queries = std::min(kQueries, Q - first_query), count = instances.count(b);
    if (count == 0) return;
    std::int64_t area[kQueries] = {};
    std::fill_n(buffers.both, kQueries * count, std::int64_t{0});
    for (std::int64_t first = 0; first < H; first += band_rows) {
      const std::int64_t end = std::min(H, first + band_rows), band = band_rows * row_words;
      for (std::int64_t q = 0; q < queries; ++q) {
        std::uint64_t* bits = buffers.bits + q * band;
        pack_band(b, first_query + q, first, end, buffers, bits);
        area[q] += count_bits(bits, (end - first) * row_words);
      }
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t g = instances.of(b)[i];
        const Target& target = targets[static_cast<std::size_t>(g)];
        const std::int64_t from = std::max(first, target.first_row),
                           to = std::min(end, target.end_row);
        if (from >= to) continue;
        const std::uint64_t* bits = target_bits + (g * H + from) * row_words;
        for (std::int64_t q = 0; q < queries; ++q)
          buffers.both[q * count + i] += count_common_bits(
              buffers.bits + q * band + (from - first) * row_words, bits, (to - from) * row_words);
      }
    }
    for (std::int64_t q = 0; q < queries; ++q) {
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t g = instances.of(b)[i];
        const double iou =
            iou_of(area[q], targets[static_cast<std::size_t>(g)].area, buffers.both[q * count + i]);
        const std::int64_t at = g * args.iou.strides[0] + (first_query + q) * args.iou.strides[1];
        copy_out(&iou, 0, {&args.iou, at, 1, 1, 0, 0});
      }
    }
  }

  /// Bits of rows [first, end) of one prediction, upsampled.
  void pack_band(std::int64_t b, std::int64_t q, std::int64_t first, std::int64_t end,
                 Buffers& buffers, std::uint64_t* bits) const {
    buffers.cached[0] = buffers.cached[1] = -1;
    for (std::int64_t y = first; y < end; ++y, bits += row_words) {
      if (factor == 1) {
        pack_values(source_row(b, q, y, buffers), bits);
        continue;
      }
      const UpsamplingPhase<F>& phase = phases[static_cast<std::size_t>(y % factor)];
      const std::int64_t top = y / factor + phase.first;
      const F* low = source_row(b, q, std::max<std::int64_t>(top, 0), buffers);
      const F* high = source_row(b, q, std::min(top + 1, h - 1), buffers);
      F* row = buffers.blended + 1;
      for (std::int64_t x = 0; x < w; ++x) row[x] = blend(low[x], high[x], phase.part);
      row[-1] = row[0];
      row[w] = row[w - 1];
      pack_upsampled(row, bits);
    }
  }

  /// `row`: w values, w + 64 may be read unless they are the tensor's own.
  void pack_values(const F* row, std::uint64_t* bits) const {
    const auto pack = [&](const F* from) {
      for (int line = 0; line < kWordBits; line += 64 / static_cast<int>(sizeof(F)))
        __builtin_prefetch(from + line + kAhead / static_cast<int>(sizeof(F)));
      return greater_word<F>(threshold, [&](int i) { return load<Lanes>(from + i); });
    };
    const std::int64_t whole = w / kWordBits;
    for (std::int64_t i = 0; i < whole; ++i) bits[i] = pack(row + i * kWordBits);
    if (whole == run_words) return;
    alignas(64) F last[kWordBits];
    std::fill_n(last, kWordBits, std::numeric_limits<F>::quiet_NaN());  // never foreground
    std::copy(row + whole * kWordBits, row + w, last);
    bits[whole] = pack(last);
  }

  /// `row`: w values, one more on either side, and what fills the last word behind them, which is
  /// cut off here.
  void pack_upsampled(const F* row, std::uint64_t* bits) const {
    const int rest = static_cast<int>(run_words * kWordBits - w);
    for (const UpsamplingPhase<F>& phase : phases) {
      for (std::int64_t i = 0; i < run_words; ++i) {
        const F* low = row + phase.first + i * kWordBits;
        *bits++ = greater_word<F>(threshold, [&](int lane) {
          return blend(load<Lanes>(low + lane), load<Lanes>(low + lane + 1), Lanes{} + phase.part);
        });
      }
      bits[-1] &= ~std::uint64_t{0} >> rest;
    }
  }

  const F* source_row(std::int64_t b, std::int64_t q, std::int64_t y, Buffers& buffers) const {
    const TensorView& tensor = args.predictions;
    const StridedRows row = {
        &tensor, b * tensor.strides[0] + q * tensor.strides[1] + y * tensor.strides[2],
        1,       w,
        0,       tensor.strides[3]};
    if (direct) return static_cast<const F*>(tensor.data) + row.offset;
    F* to = buffers.rows + y % 2 * padded_width();
    if (buffers.cached[y % 2] != y) copy_in(row, to, 0);
    buffers.cached[y % 2] = y;
    return to;
  }

  // ---- memory

  std::int64_t most_targets() const {
    std::int64_t most = 0;
    for (std::int64_t b = 0; b < B; ++b) most = std::max(most, instances.count(b));
    return most;
  }

  Buffers cut_buffers(ScratchArena arena, std::int64_t* bytes = nullptr) const {
    Buffers buffers;
    buffers.bytes = arena.take<std::uint8_t>(padded_width());
    buffers.bits = arena.take<std::uint64_t>(kQueries * band_rows * row_words);
    buffers.both = arena.take<std::int64_t>(kQueries * most_targets());
    buffers.rows = arena.take<F>(2 * padded_width());
    buffers.blended = arena.take<F>(padded_width() + 2);
    if (bytes) *bytes = arena.bytes();
    return buffers;
  }
  Buffers buffers_of(int worker) const {
    return cut_buffers(ScratchArena(memory + worker * buffer_bytes));
  }

  void run() {
    if (W == 0) H = 0;
    const std::int64_t tasks = B * ((Q + kQueries - 1) / kQueries);
    const int threads = threads_for(static_cast<double>(B) * static_cast<double>(Q * H * W),
                                    kPixelsPerThread, std::max(G, tasks), args.threads);
    cut_buffers(ScratchArena(nullptr), &buffer_bytes);
    const Scratch buffer_memory(static_cast<std::size_t>(threads * buffer_bytes));
    const Scratch bits_memory(static_cast<std::size_t>(G * H * row_words) * sizeof(std::uint64_t));
    memory = static_cast<unsigned char*>(buffer_memory.data());
    target_bits = static_cast<std::uint64_t*>(bits_memory.data());
    for (int worker = 0; worker < threads; ++worker)
      std::fill_n(buffers_of(worker).bytes, padded_width(), std::uint8_t{0});
    parallel_for(G, threads, pack_target, this);
    parallel_for(tasks, threads, predict, this);
  }
};

}  // namespace

void mask_iou_forward_cpu(const MaskIouArgs& args) {
  if (args.iou.elements() == 0) return;
  args.predictions.dtype == DType::kFloat64 ? Forward<double>(args).run()
                                            : Forward<float>(args).run();
}

}  // namespace alignmask::ALIGNMASK_ISA
