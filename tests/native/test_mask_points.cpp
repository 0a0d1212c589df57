// The C++ interface of mask_points on a case that is computed by hand, and its argument checks.
#include "mask_points/mask_points.h"

#include "native.h"

using namespace alignmask;

namespace {

// Seed 0, row 0: the words of Random123's known answer for the counter 0 and the key 0.
constexpr std::int64_t kWords[] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};

double coordinate(int word) { return static_cast<double>(kWords[word] >> 8) / (1 << 24); }

// One row of 1 x 1 pixels with the logit 2; the mask is 1 x 2 pixels, of which the left one is set.
template <class F>
struct Case {
  Array<F> logits{{1, 1, 1}, {2}}, sampled{{1, 1}}, targets{{1, 1}}, points{{1, 1, 2}},
      grad_sampled{{1, 1}, {3}}, grad_logits{{1, 1, 1}};
  Array<std::uint8_t> masks{{1, 1, 2}, {7, 0}};
  Array<std::int64_t> index = Array<std::int64_t>({1}, {0});
  MaskPointsArgs args;

  Case() {
    args.logits = logits.view();
    args.masks = masks.view();
    args.index = index.view();
    args.sampled = sampled.view();
    args.targets = targets.view();
    args.points = points.view();
    args.candidates = 2;
    args.kept = 1;
  }
};

/// The share of a map's only pixel that a sample has: it fades from the middle of the map on.
double share(double coordinate) { return 1 - std::abs(coordinate - 0.5); }

template <class F>
void test_values() {
  // Both candidates' samples are 2 · share(x) · share(y); the first one's is the smaller.
  const double x = coordinate(0), y = coordinate(1), other_x = coordinate(2),
               other_y = coordinate(3);
  expect(share(x) * share(y) < share(other_x) * share(other_y), "the first candidate is nearer");
  Case<F> c;
  mask_points_forward(c.args);
  c.points.expect_values("points", {x, y});
  c.sampled.expect_values("sampled", {2 * share(x) * share(y)});
  // Between the centres of the two pixels, and above or below their row.
  c.targets.expect_values("targets", {(1.5 - 2 * x) * share(y)});
  c.args.kept = 0;
  c.args.candidates = 1;  // so that the second is the first fresh point
  mask_points_forward(c.args);
  c.points.expect_values("fresh point", {other_x, other_y});

  MaskPointsArgs backward;
  backward.points = c.args.points;
  backward.grad_sampled = c.grad_sampled.view();
  backward.grad_logits = c.grad_logits.view();
  mask_points_backward(backward);
  c.grad_logits.expect_values("grad_logits", {3 * share(other_x) * share(other_y)});
  c.points.data[0] = 1;  // outside
  mask_points_backward(backward);
  c.grad_logits.expect_values("grad_logits of a point outside", {0});
}

void test_errors() {
  const auto fails = [](const char* message, auto change, auto error) {
    Case<float> c;
    change(c);
    expect_throw<decltype(error)>(std::string("mask_points: ") + message,
                                  [&] { mask_points_forward(c.args); });
    expect(std::isnan(c.points.data[0]), std::string("points was written in spite of: ") + message);
  };
  using C = Case<float>;
  fails("index[0] = 1 is outside [0, 0]", [](C& c) { c.index.data[0] = 1; }, ValueError(""));
  fails("kept must be in [0, 1], got 2", [](C& c) { c.args.kept = 2; }, ValueError(""));
  fails("kept must be in [0, 0], got 1", [](C& c) { c.args.candidates = 0; }, ValueError(""));
  fails(
      "candidates must be at least 0, got -1", [](C& c) { c.args.candidates = -1; },
      ValueError(""));
  fails("targets is missing", [](C& c) { c.args.targets = {}; }, TypeError(""));
  fails(
      "points must be of dtype float32, got float64",
      [](C& c) { c.args.points.dtype = DType::kFloat64; }, TypeError(""));
  fails(
      "masks has w = 4194305, at most 4194304 are supported",
      [](C& c) { c.args.masks.shape[2] = (1 << 22) + 1; }, ValueError(""));
  fails(
      "logits has H = 1024 and W = 4194304, too many pixels for 32-bit indices",
      [](C& c) {
        c.args.logits.shape[1] = 1 << 10;
        c.args.logits.shape[2] = 1 << 22;
      },
      ValueError(""));
}

}  // namespace

int main() {
  for (const CpuIsa isa : available_cpu_isas()) {
    select_cpu_isa(isa);
    test_values<float>();
    test_values<double>();
  }
  test_errors();
  return verdict("mask_points");
}
