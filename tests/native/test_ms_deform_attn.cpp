// The C++ interface of ms_deform_attn on one case that is computed by hand, and its argument
// checks.
//
// One image, one head, two channels, one level of 2 x 2 tokens:      channel 0: 1 2    channel 1:
// 10 20
//                                                                               3 4 30 40
// One query, three points: in the middle (all four tokens weigh 1/4), at the centre of the token
// (row 0, column 1), and half a pixel left of the token (row 1, column 0), where half of it is
// left. Weights 2, 3, 4.
#include "ms_deform_attn/ms_deform_attn.h"

#include <functional>
#include <string>

#include "native.h"

using namespace alignmask;

namespace {

template <class F>
struct Case {
  Array<F> value{{1, 4, 1, 2}, {1, 10, 2, 20, 3, 30, 4, 40}};
  Array<F> locations{{1, 1, 1, 1, 3, 2}, {0.5, 0.5, 0.75, 0.25, 0, 0.75}};
  Array<F> weights{{1, 1, 1, 1, 3}, {2, 3, 4}};
  Array<F> out{{1, 1, 2}}, grad_out{{1, 1, 2}, {1, 0.1}};
  Array<F> grad_value{{1, 4, 1, 2}}, grad_locations{{1, 1, 1, 1, 3, 2}},
      grad_weights{{1, 1, 1, 1, 3}};
  MSDeformAttnArgs args;

  Case() {
    args.value = value.view();
    args.locations = locations.view();
    args.weights = weights.view();
    args.levels = {{2, 2}};
  }
};

template <class F>
void test_values() {
  Case<F> c;
  c.args.out = c.out.view();
  ms_deform_attn_forward(c.args);
  // Samples: 2.5, 2 and 3/2.
  c.out.expect_values("out", {2 * 2.5 + 3 * 2 + 4 * 1.5, 10 * (2 * 2.5 + 3 * 2 + 4 * 1.5)});

  c.args.out = {};
  c.args.grad_out = c.grad_out.view();
  c.args.grad_value = c.grad_value.view();
  c.args.grad_locations = c.grad_locations.view();
  c.args.grad_weights = c.grad_weights.view();
  ms_deform_attn_backward(c.args);
  // Every token: Σ of weight · part, times the gradient 1 of channel 0 and 0.1 of channel 1.
  const double corner = 2 * 0.25, right = corner + 3, below = corner + 4 * 0.5;
  c.grad_value.expect_values("grad_value", {corner, corner / 10, right, right / 10, below,
                                            below / 10, corner, corner / 10});
  // <value, gradient> is twice channel 0. A step of 1 in a location is two pixels; to the right the
  // value grows by 1, downwards by 2, except that right of token (0, 1) there is nothing, and left
  // of token (1, 0) it falls to zero.
  c.grad_locations.expect_values("grad_locations", {2 * 2 * 2 * 1, 2 * 2 * 2 * 2,   //
                                                    3 * 2 * 2 * -2, 3 * 2 * 2 * 2,  //
                                                    4 * 2 * 2 * 3, 4 * 2 * 2 * -1.5});
  c.grad_weights.expect_values("grad_weights", {2 * 2.5, 2 * 2, 2 * 1.5});

  // A gradient that is absent changes nothing about the others.
  Case<F> d;
  d.args.grad_out = d.grad_out.view();
  d.args.grad_weights = d.grad_weights.view();
  ms_deform_attn_backward(d.args);
  d.grad_weights.expect_values("grad_weights alone", {2 * 2.5, 2 * 2, 2 * 1.5});
}

template <class Error>
void expect_error(const char* message, const std::function<void(Case<float>&)>& change,
                  const char* op = "ms_deform_attn") {
  Case<float> c;
  c.args.out = c.out.view();
  change(c);
  try {
    ms_deform_attn_forward(c.args);
    expect(false, std::string("no error: ") + message);
  } catch (const Error& error) {
    expect(error.what() == std::string(op) + ": " + message, error.what());
  }
  expect(std::isnan(c.out.data[0]), std::string("out was written in spite of: ") + message);
}

void test_errors() {
  using C = Case<float>;
  expect_error<TypeError>("weights is missing", [](C& c) { c.args.weights = {}; });
  expect_error<TypeError>("out is missing", [](C& c) { c.args.out = {}; });
  expect_error<TypeError>("locations must be of dtype float32, got float64",
                          [](C& c) { c.args.locations.dtype = DType::kFloat64; });
  expect_error<ValueError>("value must have the 4 dimensions BSND, got (1, 4, 1)",
                           [](C& c) { c.args.value.dims = 3; });
  expect_error<ValueError>("weights (BQNLP) has P = 2 in (1, 1, 1, 1, 2), but locations has P = 3",
                           [](C& c) { c.args.weights.shape[4] = 2; });
  expect_error<ValueError>("level_shapes [(2, 3)] adds up to 6 tokens, but value has S = 4",
                           [](C& c) { c.args.levels = {{2, 3}}; });
  expect_error<ValueError>(
      "level_shapes[0] = (65536, 65536) has too many tokens for 32-bit indices",
      [](C& c) { c.args.levels = {{65536, 65536}}; });
  expect_error<ValueError>("weights is on cuda:1, but value is on cpu",
                           [](C& c) { c.args.weights.device = {DeviceType::kCUDA, 1}; });
  expect_error<ValueError>("out (BQE) must have E = N·D = 2, got (1, 1, 1)",
                           [](C& c) { c.args.out.shape[2] = 1; });
  expect_error<ValueError>("out is an output, but its memory is read-only",
                           [](C& c) { c.args.out.read_only = true; });
  expect_error<ValueError>(
      "out is an output, but several of its elements share one place in memory",
      [](C& c) { c.args.out.strides[2] = 0; });
  expect_error<TypeError>(
      "reference is missing", [](C& c) { c.args.form = MSDeformAttnArgs::Form::kOffsets; },
      "ms_deform_attn_from_offsets");
  expect_error<ValueError>("reference is given, but locations instead of offsets",
                           [](C& c) { c.args.reference = c.locations.view(); });
  expect_error<ValueError>("value has no memory", [](C& c) { c.args.value.data = nullptr; });
  expect_error<ValueError>("value is not aligned to its element size in memory", [](C& c) {
    c.args.value.data = static_cast<char*>(c.args.value.data) + 1;
  });
}

}  // namespace

int main() {
  for (const CpuIsa isa : available_cpu_isas()) {
    select_cpu_isa(isa);
    test_values<float>();
    test_values<double>();
  }
  test_errors();
  return verdict("ms_deform_attn");
}
