// The C++ interface of quality_focal_loss on a case that is computed by hand, and its argument
// checks.
#include "quality_focal_loss/quality_focal_loss.h"

#include "native.h"

using namespace alignmask;

namespace {

// At logit 0, s = 1/2 and BCE = ln 2 for any target. Rows: a label with IoU 1, a negative below θ,
// one at IoU 3/4.
template <class F>
struct Case {
  Array<F> logits{{3, 2}, {0, 0, 0, 0, 0, 0}}, iou{{3}, {1, 0.25, 0.75}};
  Array<std::int64_t> label{{3}, {1, -1, -1}};
  Array<F> loss{{3}}, grad_logits{{3, 2}};
  QualityFocalLossArgs args;

  Case() {
    args.logits = logits.view();
    args.label = label.view();
    args.iou = iou.view();
    args.loss = loss.view();
    args.grad_logits = grad_logits.view();
  }
};

template <class F>
void test_values() {
  Case<F> c;
  quality_focal_loss_forward(c.args);
  const double ln2 = std::log(2.0), weight = (1 - 0.75 * 0.75) / 0.75;
  c.loss.expect_values("loss", {2 * ln2 / 4, 2 * ln2 / 4, weight * 2 * ln2 / 4});
  // d/dx s² softplus(x) = 2 s² (1 - s) softplus(x) + s³; the label's term is its mirror image.
  const double slope = ln2 / 4 + 1.0 / 8;
  c.grad_logits.expect_values("grad_logits",
                              {slope, -slope, slope, slope, weight * slope, weight * slope});

  Case<F> d;
  d.args.grad_logits = {};
  quality_focal_loss_forward(d.args);
  d.loss.expect_values("loss alone", {2 * ln2 / 4, 2 * ln2 / 4, weight * 2 * ln2 / 4});
}

void test_errors() {
  const auto fails = [](const char* message, auto change, auto error) {
    Case<float> c;
    change(c);
    expect_throw<decltype(error)>(std::string("quality_focal_loss: ") + message,
                                  [&] { quality_focal_loss_forward(c.args); });
    expect(std::isnan(c.loss.data[0]), std::string("loss was written in spite of: ") + message);
  };
  using C = Case<float>;
  fails("label[2] = 2 is outside [-1, 1]", [](C& c) { c.label.data[2] = 2; }, ValueError(""));
  fails(
      "gamma must be finite and at least 1 (below, the gradient is unbounded), got 0.5",
      [](C& c) { c.args.gamma = 0.5; }, ValueError(""));
  fails("theta must be in [0, 1), got 1", [](C& c) { c.args.theta = 1; }, ValueError(""));
  fails("loss is missing", [](C& c) { c.args.loss = {}; }, TypeError(""));
  fails(
      "grad_logits must be of dtype float32, got float64",
      [](C& c) { c.args.grad_logits.dtype = DType::kFloat64; }, TypeError(""));
}

}  // namespace

int main() {
  for (const CpuIsa isa : available_cpu_isas()) {
    select_cpu_isa(isa);
    test_values<float>();
    test_values<double>();
  }
  test_errors();
  return verdict("quality_focal_loss");
}
