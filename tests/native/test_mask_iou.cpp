// The C++ interface of mask_iou on cases that are computed by hand, and its argument checks.
#include "mask_iou/mask_iou.h"

#include "native.h"

using namespace alignmask;

namespace {

// Two predictions of 2 x 2: the upper row, and nothing. Targets: the left column, nothing, the
// upper row.
template <class F>
struct Case {
  Array<F> predictions{{1, 2, 2, 2}, {1, 1, -1, -1, -1, 0, -1, -1}};
  Array<std::uint8_t> targets{{3, 2, 2}, {1, 0, 255, 0, 0, 0, 0, 0, 1, 1, 0, 0}};
  Array<std::int32_t> owner{{3}, {0, 0, 0}};
  Array<F> iou{{3, 2}};
  MaskIouArgs args;

  Case() {
    args.predictions = predictions.view();
    args.targets = targets.view();
    args.owner = owner.view();
    args.iou = iou.view();
  }
};

template <class F>
void test_values() {
  Case<F> c;
  mask_iou_forward(c.args);
  c.iou.expect_values("iou", {1.0 / 3, 0, 0, 0, 1, 0});

  // Twice the size: rows 1, 1/2, -1/2, -1 of the first prediction. The target is its upper half.
  Case<F> d;
  Array<std::uint8_t> target({1, 4, 4}, {1, 1, 1, 1, 1, 1, 1, 1});
  Array<F> iou({1, 2});
  d.args.targets = target.view();
  d.args.owner.shape[0] = 1;
  d.args.iou = iou.view();
  mask_iou_forward(d.args);
  iou.expect_values("iou after upsampling", {1, 0});
  d.args.threshold = 0.6;  // only the uppermost row is left
  mask_iou_forward(d.args);
  iou.expect_values("iou above 0.6", {0.5, 0});
}

void test_errors() {
  const auto fails = [](const char* message, auto change, auto error) {
    Case<float> c;
    change(c);
    expect_throw<decltype(error)>(std::string("mask_iou: ") + message,
                                  [&] { mask_iou_forward(c.args); });
    expect(std::isnan(c.iou.data[0]), std::string("iou was written in spite of: ") + message);
  };
  using C = Case<float>;
  fails("owner[1] = 1 is outside [0, 0]", [](C& c) { c.owner.data[1] = 1; }, ValueError(""));
  fails(
      "targets must have the predictions' size (2, 2) or the same integer multiple of both sides, "
      "got (2, 1)",
      [](C& c) { c.args.targets.shape[2] = 1; }, ValueError(""));
  fails(
      "targets must be of dtype bool, uint8, got int32",
      [](C& c) { c.args.targets.dtype = DType::kInt32; }, TypeError(""));
  fails("iou is missing", [](C& c) { c.args.iou = {}; }, TypeError(""));
}

}  // namespace

int main() {
  for (const CpuIsa isa : available_cpu_isas()) {
    select_cpu_isa(isa);
    test_values<float>();
    test_values<double>();
  }
  test_errors();
  return verdict("mask_iou");
}
