// The CPU kernels. A thread takes a mask and walks through its columns, one after the other: a
// column of the image is blended of columns of the logits, which are transposed first, and becomes
// bits at once. Nothing larger than a few columns is stored.
//
// Blends of numbers none of which is above 0 are not above 0, rounded or not. So only the rows and
// columns near logits above 0 are computed; all others are background.
#include <algorithm>
#include <limits>

#include "common/arena.h"
#include "common/cpu/bits.h"
#include "common/cpu/dispatch.h"
#include "common/cpu/parallel_for.h"
#include "common/cpu/simd.h"
#include "common/cpu/strided_copy.h"
#include "mask_rle/formula.h"
#include "mask_rle/mask_rle.h"

namespace alignmask::ALIGNMASK_ISA {

void mask_rle_forward_cpu(const MaskRleArgs& args);
void mask_rle_counts_forward_cpu(const MaskRleArgs& args);

namespace {

constexpr std::int64_t kPixelsPerThread = 200'000;  // below, another thread does not pay

/// Pixels [begin, end) of an axis.
struct Range {
  std::int64_t begin, end;

  bool empty() const { return begin >= end; }
  /// By a pixel on either side, of `size`.
  Range wider(std::int64_t size) const {
    return {std::max<std::int64_t>(begin - 1, 0), std::min(end + 1, size)};
  }
};

/// One axis of a resize.
template <class F>
struct Axis {
  std::int64_t source, size;  ///< `size`: as far as it is needed
  bool same;                  ///< nothing is resized, but for what `size` cuts off
  std::int32_t* first = nullptr;
  F* part = nullptr;

  void fill(std::int64_t resized) {
    const F scale = static_cast<F>(source) / static_cast<F>(resized);
    for (std::int64_t i = 0; i < size; ++i) {
      const auto tap = ResizeTap<F>::of(static_cast<int>(i), scale, static_cast<int>(source));
      first[i] = same ? static_cast<std::int32_t>(i) : tap.first;
      part[i] = same ? 0 : tap.part;
    }
  }

  /// The source pixel behind first[i]; the last one has none.
  std::int64_t second(std::int64_t i) const {
    return same ? first[i] : std::min<std::int64_t>(first[i] + 1, source - 1);
  }

  /// The pixels that are blended of some pixel in `sources`.
  Range around(Range sources) const {
    return {std::lower_bound(first, first + size, sources.begin - !same) - first,
            std::lower_bound(first, first + size, sources.end) - first};
  }

  /// The source pixels that `range`, which is not empty, is blended of.
  Range sources(Range range) const { return {first[range.begin], second(range.end - 1) + 1}; }
};

template <class F>
struct Masks {
  static constexpr int kLanes = ALIGNMASK_VECTOR_BYTES / sizeof(F);
  using Lanes = Pack<F, kLanes>;

  const MaskRleArgs& args;
  std::int64_t N, h, w, H, W;
  Axis<F> pad_rows, pad_columns, rows, columns;  // logits -> padded; valid -> image
  std::int64_t words, row_words;                 // of a column of the image; of a row of logits
  bool direct;                                   // rows of logits are contiguous F
  unsigned char* memory = nullptr;               // [threads, buffer_bytes]
  std::int64_t buffer_bytes = 0;

  explicit Masks(const MaskRleArgs& args)
      : args(args),
        N(args.logits.shape[0]),
        h(args.logits.shape[1]),
        w(args.logits.shape[2]),
        H(args.height),
        W(args.width),
        pad_rows{h, args.valid_height, h == args.padded_height && w == args.padded_width},
        pad_columns{w, args.valid_width, pad_rows.same},
        rows{args.valid_height, H, H == args.valid_height && W == args.valid_width},
        columns{args.valid_width, W, rows.same},
        words(words_for(H)),
        row_words(words_for(w)),
        direct(contiguous<F>(args.logits, 2)) {}

  /// A thread's memory, and the mask that it works on.
  struct Mask {
    F* row;                        // [w]: one of logits that cannot be read in place
    std::uint64_t* above_columns;  // [row_words]: which columns of logits have one above 0
    F* logits;                     // [w, h]: columns
    F* between;                    // [max(h, valid height) + 1]: blended of two columns
    F* padded;                     // [2, valid height]: columns of the padded map
    F* full;                       // [words * 64]: a column of the image; 0 outside of full_above
    std::uint64_t* bits;           // [words]: its pixels
    std::uint64_t* set_rows;       // [words]: which rows of the image have pixels

    Range padded_above;                 // rows of the padded map that may be above 0
    Range full_above;                   // rows of the image that may be
    std::int64_t cached[2] = {-1, -1};  // which columns `padded` has
    bool last_pixel = false;            // of the column before
  };

  // ---- logits

  /// Finds the logits above 0 and copies what lies around them, as columns. False if no pixel can
  /// be set.
  bool read(Mask& mask, std::int64_t n) const {
    const TensorView& tensor = args.logits;
    const std::int64_t offset = n * tensor.strides[0];
    std::fill_n(mask.above_columns, row_words, std::uint64_t{0});
    Range above_rows = {h, 0}, above_columns = {0, w};
    for (std::int64_t y = 0; y < h; ++y) {
      const std::int64_t at = offset + y * tensor.strides[1];
      if (!direct) copy_in<F>({&tensor, at, 1, w, 0, tensor.strides[2]}, mask.row, 0);
      const F* const row = direct ? static_cast<const F*>(tensor.data) + at : mask.row;
      std::uint64_t any = 0;
      for (std::int64_t i = 0; i < row_words; ++i) {
        const std::uint64_t word = word_above(row + i * kWordBits, w - i * kWordBits);
        mask.above_columns[i] |= word;
        any |= word;
      }
      if (any) above_rows = {std::min(above_rows.begin, y), y + 1};
    }
    if (above_rows.empty()) return false;
    while (!above(mask, above_columns.begin)) ++above_columns.begin;
    while (!above(mask, above_columns.end - 1)) --above_columns.end;
    mask.padded_above = pad_rows.around(above_rows);
    mask.full_above = rows.around(mask.padded_above);
    const Range padded_columns = pad_columns.around(above_columns);
    if (mask.full_above.empty() || padded_columns.empty()) return false;

    const Range down = pad_rows.sources(mask.padded_above.wider(pad_rows.size)),
                across = pad_columns.sources(padded_columns.wider(pad_columns.size));
    copy_in<F>(
        {&tensor, offset + across.begin * tensor.strides[2] + down.begin * tensor.strides[1],
         across.end - across.begin, down.end - down.begin, tensor.strides[2], tensor.strides[1]},
        mask.logits + across.begin * h + down.begin, h);
    std::fill_n(mask.full, words * kWordBits, F(0));
    std::fill_n(mask.bits, words, std::uint64_t{0});
    mask.cached[0] = mask.cached[1] = -1;
    return true;
  }

  /// Bit i: value i is above 0. No more than `count` are read.
  static std::uint64_t word_above(const F* from, std::int64_t count) {
    if (count >= kWordBits)
      return greater_word<F>(F(0), [&](int i) { return load<Lanes>(from + i); });
    std::uint64_t word = 0;
    for (std::int64_t i = 0; i < count; ++i) word |= std::uint64_t{from[i] > 0} << i;
    return word;
  }

  /// Has this column of the logits one above 0?
  static bool above(const Mask& mask, std::int64_t x) {
    return mask.above_columns[x / kWordBits] >> (x % kWordBits) & 1;
  }
  bool padded_above(const Mask& mask, std::int64_t x) const {
    return above(mask, pad_columns.first[x]) || above(mask, pad_columns.second(x));
  }

  // ---- columns

  /// Rows `range` of a column that lies between columns `left` and `right`, `part` of the way.
  static void resize(const F* left, const F* right, F part, const Axis<F>& axis, Range range,
                     F* between, F* to) {
    const Range sources = axis.sources(range);
    for (std::int64_t y = sources.begin; y < sources.end; ++y)
      between[y] = blend(left[y], right[y], part);
    between[sources.end] = between[sources.end - 1];
    const std::int32_t* const first = axis.first;
    for (std::int64_t y = range.begin; y < range.end; ++y)
      to[y] = blend(between[first[y]], between[first[y] + 1], axis.part[y]);
  }

  /// A column of the padded map, as far as it is needed.
  const F* padded_column(Mask& mask, std::int64_t x) const {
    if (pad_columns.same) return mask.logits + x * h;
    F* const to = mask.padded + x % 2 * args.valid_height;
    if (mask.cached[x % 2] != x)
      resize(mask.logits + pad_columns.first[x] * h, mask.logits + pad_columns.second(x) * h,
             pad_columns.part[x], pad_rows, mask.padded_above.wider(pad_rows.size), mask.between,
             to);
    mask.cached[x % 2] = x;
    return to;
  }

  /// Computes a column of the image, `full` and `bits`. False if no pixel of it is set.
  bool full_column(Mask& mask, std::int64_t x) const {
    const std::int64_t left = columns.first[x], right = columns.second(x);
    if (!padded_above(mask, left) && !padded_above(mask, right)) return false;
    const Range range = mask.full_above;
    const F* const first = padded_column(mask, left);
    if (rows.same) {
      std::copy(first + range.begin, first + range.end, mask.full + range.begin);
    } else {
      resize(first, padded_column(mask, right), columns.part[x], rows, range, mask.between,
             mask.full);
    }
    for (std::int64_t i = range.begin / kWordBits; i < words_for(range.end); ++i)
      mask.bits[i] = word_above(mask.full + i * kWordBits, kWordBits);
    return true;
  }

  /// Calls found(i, word): bit b of the word says that pixel 64 i + b of the column differs from
  /// the one before it, which for the first one is the last one of the column before.
  template <class Found>
  void each_change(Mask& mask, bool any, Found found) const {
    bool before = mask.last_pixel;
    if (any) {
      for (std::int64_t i = 0; i < words; ++i) {
        const std::uint64_t word = mask.bits[i];
        std::uint64_t changes = word ^ (word << 1 | std::uint64_t{before});
        before = word >> (kWordBits - 1);
        if (const std::int64_t rest = H - i * kWordBits; rest < kWordBits) {
          changes &= (std::uint64_t{1} << rest) - 1;
          before = word >> (rest - 1) & 1;
        }
        if (changes) found(i, changes);
      }
    } else if (before) {
      found(std::int64_t{0}, std::uint64_t{1});
      before = false;
    }
    mask.last_pixel = before;
  }

  // ---- what is asked for

  static void measure(void* context, std::int64_t n, int worker) {
    const Masks& self = *static_cast<const Masks*>(context);
    self.measure(n, self.mask_of(worker));
  }

  void measure(std::int64_t n, Mask mask) const {
    const TensorView& runs = args.runs;
    auto* const to = static_cast<std::int32_t*>(runs.data) + n * runs.strides[0];
    std::int64_t area = 0, left = W, right = 0;
    double probability = 0;
    const bool some = read(mask, n);
    std::fill_n(mask.set_rows, words, std::uint64_t{0});
    for (std::int64_t x = 0; x < W; ++x) {
      const bool any = some && full_column(mask, x);
      std::int32_t changes = 0;
      each_change(mask, any,
                  [&](std::int64_t, std::uint64_t word) { changes += __builtin_popcountll(word); });
      to[x * runs.strides[1]] = changes + (x == W - 1);
      const std::int64_t set = any ? count_bits(mask.bits, words) : 0;
      if (set == 0) continue;
      area += set;
      left = std::min(left, x);
      right = x + 1;
      for (std::int64_t i = 0; i < words; ++i) mask.set_rows[i] |= mask.bits[i];
      probability += sum_of_probabilities(mask);
    }
    std::int64_t top = 0, bottom = H;
    const auto is_set = [&](std::int64_t y) {
      return mask.set_rows[y / kWordBits] >> (y % kWordBits) & 1;
    };
    while (area && !is_set(top)) ++top;
    while (area && !is_set(bottom - 1)) --bottom;
    const std::int64_t box[] = {left, top, right, bottom};
    for (int i = 0; i < 4; ++i)
      static_cast<std::int64_t*>(args.box.data)[n * args.box.strides[0] + i * args.box.strides[1]] =
          area ? box[i] : 0;
    static_cast<std::int64_t*>(args.area.data)[n * args.area.strides[0]] = area;
    const F mean = static_cast<F>(area ? probability / static_cast<double>(area) : 0);
    static_cast<F*>(args.probability.data)[n * args.probability.strides[0]] = mean;
  }

  /// Over the column's set pixels.
  double sum_of_probabilities(const Mask& mask) const {
    Lanes sum{};
    for (std::int64_t i = 0; i < words; ++i) {
      if (!mask.bits[i]) continue;
      for (int lane = 0; lane < kWordBits; lane += kLanes) {
        const Lanes logit = load<Lanes>(mask.full + i * kWordBits + lane);
        sum += logit > 0 ? probability_of(logit > 0 ? logit : Lanes{}) : Lanes{};
      }
    }
    return sum_of_lanes<F, kLanes>(sum);
  }

  static void write(void* context, std::int64_t n, int worker) {
    const Masks& self = *static_cast<const Masks*>(context);
    self.write(n, self.mask_of(worker));
  }

  void write(std::int64_t n, Mask mask) const {
    const TensorView &ends = args.ends, &counts = args.counts;
    const auto end_of = [&](std::int64_t mask_index, std::int64_t x) {
      return static_cast<const std::int64_t*>(
          ends.data)[mask_index * ends.strides[0] + x * ends.strides[1]];
    };
    std::int64_t k = n == 0 ? 0 : end_of(n - 1, W - 1), past = 0;  // pixels in counts so far
    const auto add = [&](std::int64_t pixel, std::int64_t end) {
      if (k == end) return;  // of other logits
      static_cast<std::int32_t*>(counts.data)[k++ * counts.strides[0]] =
          static_cast<std::int32_t>(pixel - past);
      past = pixel;
    };
    const bool some = read(mask, n);
    for (std::int64_t x = 0; x < W; ++x) {
      const std::int64_t end = end_of(n, x), changes_end = end - (x == W - 1);
      if (k < changes_end) {  // else all pixels are as the last one
        each_change(mask, some && full_column(mask, x), [&](std::int64_t i, std::uint64_t word) {
          for (; word; word &= word - 1)
            add(x * H + i * kWordBits + __builtin_ctzll(word), changes_end);
        });
      }
    }
    add(W * H, end_of(n, W - 1));
  }

  // ---- memory

  Mask cut_buffers(ScratchArena arena, std::int64_t* bytes = nullptr) const {
    Mask mask;
    mask.row = arena.take<F>(w);
    mask.above_columns = arena.take<std::uint64_t>(row_words);
    mask.logits = arena.take<F>(w * h);
    mask.between = arena.take<F>(std::max(h, std::int64_t{args.valid_height}) + 1);
    mask.padded = arena.take<F>(2 * std::int64_t{args.valid_height});
    mask.full = arena.take<F>(words * kWordBits);
    mask.bits = arena.take<std::uint64_t>(words);
    mask.set_rows = arena.take<std::uint64_t>(words);
    if (bytes) *bytes = arena.bytes();
    return mask;
  }
  Mask mask_of(int worker) const {
    return cut_buffers(ScratchArena(memory + worker * buffer_bytes));
  }

  std::int64_t cut_axes(ScratchArena arena) {
    for (Axis<F>* axis : {&pad_rows, &pad_columns, &rows, &columns}) {
      axis->first = arena.take<std::int32_t>(axis->size);
      axis->part = arena.take<F>(axis->size);
    }
    return arena.bytes();
  }

  void run(void (*task)(void* context, std::int64_t n, int worker)) {
    const Scratch axes(static_cast<std::size_t>(cut_axes(ScratchArena(nullptr))));
    cut_axes(ScratchArena(axes.data()));
    pad_rows.fill(args.padded_height);
    pad_columns.fill(args.padded_width);
    rows.fill(H);
    columns.fill(W);
    const int threads = threads_for(static_cast<double>(N) * static_cast<double>(H * W),
                                    kPixelsPerThread, N, args.threads);
    cut_buffers(ScratchArena(nullptr), &buffer_bytes);
    const Scratch buffers(static_cast<std::size_t>(threads * buffer_bytes));
    memory = static_cast<unsigned char*>(buffers.data());
    parallel_for(N, threads, task, this);
  }
};

}  // namespace

void mask_rle_forward_cpu(const MaskRleArgs& args) {
  args.logits.dtype == DType::kFloat64 ? Masks<double>(args).run(Masks<double>::measure)
                                       : Masks<float>(args).run(Masks<float>::measure);
}

void mask_rle_counts_forward_cpu(const MaskRleArgs& args) {
  args.logits.dtype == DType::kFloat64 ? Masks<double>(args).run(Masks<double>::write)
                                       : Masks<float>(args).run(Masks<float>::write);
}

}  // namespace alignmask::ALIGNMASK_ISA
