// The C++ interface of mask_rle on a case that is computed by hand, and its argument checks.
#include "mask_rle/mask_rle.h"

#include "native.h"

using namespace alignmask;

namespace {

// Two masks of 2 x 2 logits, resized to 4 x 4, of which 4 x 2 pixels show the image: rows 1, 1/2,
// -1/2, -1 of the first one; nothing of the second.
template <class F>
struct Case {
  Array<F> logits{{2, 2, 2}, {1, 1, -1, -1, -1, -1, 0, 9}};
  Array<std::int32_t> runs{{2, 2}};
  Array<std::int64_t> area{{2}}, box{{2, 4}}, ends{{2, 2}, {2, 5, 5, 6}};
  Array<F> probability{{2}};
  Array<std::int32_t> counts{{6}};
  MaskRleArgs args;

  Case() {
    args.logits = logits.view();
    args.height = 4;
    args.width = 2;
    args.padded_height = args.padded_width = 4;
    args.valid_height = 4;
    args.valid_width = 2;
    args.runs = runs.view();
    args.area = area.view();
    args.box = box.view();
    args.probability = probability.view();
    args.ends = ends.view();
    args.counts = counts.view();
  }
};

template <class F>
void test_values() {
  Case<F> c;
  c.logits.data[7] = -1;
  mask_rle_forward(c.args);
  c.runs.expect_values("runs", {2, 3, 0, 1});
  c.area.expect_values("area", {4, 0});
  c.box.expect_values("box", {0, 0, 2, 2, 0, 0, 0, 0});
  const double mean = (1 / (1 + std::exp(-1.0)) + 1 / (1 + std::exp(-0.5))) / 2;
  c.probability.expect_values("probability", {mean, 0});
  mask_rle_counts_forward(c.args);
  c.counts.expect_values("counts", {0, 2, 2, 2, 2, 8});
}

void test_errors() {
  const auto fails = [](const char* message, auto change, auto error) {
    Case<float> c;
    change(c);
    const std::string expected = std::string("mask_rle: ") + message;
    expect_throw<decltype(error)>(expected, [&] {
      mask_rle_counts_forward(c.args);
      mask_rle_forward(c.args);
    });
    expect(std::isnan(c.probability.data[0]), "probability was written in spite of: " + expected);
  };
  using C = Case<float>;
  fails(
      "size must be of 1 pixel or more a side, got (0, 2)", [](C& c) { c.args.height = 0; },
      ValueError(""));
  fails(
      "padded (4, 16777217) has a side of more than 2^24 pixels, whose places float32 cannot tell "
      "apart",
      [](C& c) { c.args.padded_width = (1 << 24) + 1; }, ValueError(""));
  fails(
      "valid (4, 5) must lie within padded (4, 4)", [](C& c) { c.args.valid_width = 5; },
      ValueError(""));
  fails(
      "ends[1, 0] = 7 must be between the one before, 5, and the number of counts, 6",
      [](C& c) { c.ends.data[2] = 7; }, ValueError(""));
  fails(
      "ends (NW) must have W = 2, got (2, 1)", [](C& c) { c.args.ends.shape[1] = 1; },
      ValueError(""));
  fails("counts is missing", [](C& c) { c.args.counts = {}; }, TypeError(""));
  fails("probability is missing", [](C& c) { c.args.probability = {}; }, TypeError(""));
}

}  // namespace

int main() {
  for (const CpuIsa isa : available_cpu_isas()) {
    select_cpu_isa(isa);
    test_values<float>();
    test_values<double>();
  }
  test_errors();
  return verdict("mask_rle");
}
