// The C++ interface of masked_point_pool on a case that is computed by hand, and its argument
// checks.
#include "masked_point_pool/masked_point_pool.h"

#include "native.h"

using namespace alignmask;

namespace {

// One image of 1 x 2 pixels with the feature 3, 5; the mask is the right pixel. Points: its centre,
// the middle between the pixels (half the mask, feature 4), the left pixel's centre, and one
// outside.
template <class F>
struct Case {
  Array<F> features{{1, 1, 1, 2}, {3, 5}},
      points{{1, 1, 4, 2}, {0.75, 0.5, 0.5, 0.5, 0.25, 0.5, 0.75, 2}};
  Array<std::uint8_t> masks{{1, 1, 2}, {0, 1}};
  Array<std::int64_t> owner = Array<std::int64_t>({1}, {0});
  Array<F> pooled{{1, 1, 1}}, weight{{1, 1}}, grad_pooled{{1, 1, 1}, {6}},
      grad_features{{1, 1, 1, 2}};
  MaskedPointPoolArgs args;

  Case() {
    args.masks = masks.view();
    args.owner = owner.view();
    args.points = points.view();
    args.weight = weight.view();
  }
};

template <class F>
void test_values() {
  Case<F> c;
  c.args.features = c.features.view();
  c.args.pooled = c.pooled.view();
  masked_point_pool_forward(c.args);
  c.weight.expect_values("weight", {1.5});
  c.pooled.expect_values("pooled", {(5 + 0.5 * 4) / 1.5});
  c.args.divide_by_points = true;
  masked_point_pool_forward(c.args);
  c.pooled.expect_values("pooled over all points", {(5 + 0.5 * 4) / 4});

  c.args.divide_by_points = false;
  c.args.features = {};
  c.args.grad_pooled = c.grad_pooled.view();
  c.args.grad_features = c.grad_features.view();
  masked_point_pool_backward(c.args);
  // 6 / 1.5 = 4 for a full hit: half of half of it left, and 1 + 1/4 of it right.
  c.grad_features.expect_values("grad_features", {4 * 0.25, 4 * 1.25});
}

void test_errors() {
  const auto fails = [](const char* message, auto change, auto error) {
    Case<float> c;
    c.args.features = c.features.view();
    c.args.pooled = c.pooled.view();
    change(c);
    expect_throw<decltype(error)>(std::string("masked_point_pool: ") + message,
                                  [&] { masked_point_pool_forward(c.args); });
    expect(std::isnan(c.pooled.data[0]), std::string("pooled was written in spite of: ") + message);
  };
  using C = Case<float>;
  fails("owner[0] = -1 is outside [0, 0]", [](C& c) { c.owner.data[0] = -1; }, ValueError(""));
  fails(
      "masks (Ghw) has G = 2 in (2, 1, 1), but owner has G = 1",
      [](C& c) {
        c.args.masks.shape[0] = 2;
        c.args.masks.shape[2] = 1;
      },
      ValueError(""));
  fails(
      "points must be of dtype float32, got float64",
      [](C& c) { c.args.points.dtype = DType::kFloat64; }, TypeError(""));
  fails("pooled is missing", [](C& c) { c.args.pooled = {}; }, TypeError(""));
  fails(
      "features has W = 4294967296, too many pixels for 32-bit indices",
      [](C& c) { c.args.features.shape[3] = std::int64_t{1} << 32; }, ValueError(""));
}

}  // namespace

int main() {
  for (const CpuIsa isa : available_cpu_isas()) {
    select_cpu_isa(isa);
    test_values<float>();
    test_values<double>();
  }
  test_errors();
  return verdict("masked_point_pool");
}
