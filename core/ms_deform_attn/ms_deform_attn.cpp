#include "ms_deform_attn.h"

#include <string>

#include "common/check.h"
#include "common/cpu/dispatch.h"
#include "common/launch/launch.h"
#include "ms_deform_attn/cuda/launches.h"

namespace alignmask {

ALIGNMASK_FOR_EACH_ISA(void ms_deform_attn_forward_cpu(const MSDeformAttnArgs& args);)
ALIGNMASK_FOR_EACH_ISA(void ms_deform_attn_backward_cpu(const MSDeformAttnArgs& args);)

namespace {

using Form = MSDeformAttnArgs::Form;

constexpr std::int64_t kMaxLevelTokens =
    (std::int64_t{1} << 31) - 2;                              // indices of tokens are 32-bit
constexpr std::int64_t kMaxChannels = std::int64_t{1} << 27;  // so are the bytes of a packed token

ArgumentCheck check_inputs(const MSDeformAttnArgs& args) {
  const auto& name = args.names();
  ArgumentCheck check(name.op);
  check.input("value", args.value, "BSND", kFloats);
  const DType dtype = args.value.dtype;
  const DType arithmetic = arithmetic_dtype(dtype);
  if (args.form == Form::kOffsets)
    check.input("reference", args.reference, "BQL2", {dtype, arithmetic});
  if (args.form == Form::kLocations && args.reference.present)
    check.fail_value("reference is given, but locations instead of offsets");
  check.input(name.locations, args.locations, "BQNLP2", {dtype, arithmetic});
  check.input(name.weights, args.weights, "BQNLP", {dtype, arithmetic});
  if (check.size('D') > kMaxChannels)
    check.fail_value("value has D = " + std::to_string(check.size('D')) +
                     " channels per head, at most " + std::to_string(kMaxChannels) +
                     " are supported");

  const auto count = static_cast<std::int64_t>(args.levels.size());
  if (count != check.size('L'))
    check.fail_value("level_shapes lists " + std::to_string(count) + " levels, but " +
                     name.locations + " has L = " + std::to_string(check.size('L')));
  const auto level = [&](std::int64_t l) {
    const auto [height, width] = args.levels[static_cast<std::size_t>(l)];
    return "(" + std::to_string(height) + ", " + std::to_string(width) + ")";
  };
  const auto fail = [&](std::int64_t l, const char* what) {
    check.fail_value("level_shapes[" + std::to_string(l) + "] = " + level(l) + what);
  };
  std::int64_t tokens = 0;
  for (std::int64_t l = 0; l < count; ++l) {
    const auto [height, width] = args.levels[static_cast<std::size_t>(l)];
    if (height < 0 || width < 0) fail(l, " is negative");
    if (height > kMaxLevelTokens || width > kMaxLevelTokens ||
        (width > 0 && height > kMaxLevelTokens / width))
      fail(l, " has too many tokens for 32-bit indices");
    tokens += height * width;
  }
  if (tokens != check.size('S')) {
    std::string list;
    for (std::int64_t l = 0; l < count; ++l) list += (l ? ", " : "") + level(l);
    check.fail_value("level_shapes [" + list + "] adds up to " + std::to_string(tokens) +
                     " tokens, but value has S = " + std::to_string(check.size('S')));
  }
  return check;
}

void check_channels(const ArgumentCheck& check, const char* name, const TensorView& tensor) {
  std::int64_t expected = 0;
  const bool overflow = __builtin_mul_overflow(check.size('N'), check.size('D'), &expected);
  if (overflow || tensor.shape[2] != expected)
    check.fail_value(std::string(name) + " (BQE) must have E = N·D = " + std::to_string(expected) +
                     ", got " + shape_string(tensor));
}

LaunchTarget launch_target(const ArgumentCheck& check, const MSDeformAttnArgs& args) {
  return {args.op(), check.device(), args.stream, &check};
}

}  // namespace

void ms_deform_attn_forward(const MSDeformAttnArgs& args) {
  ArgumentCheck check = check_inputs(args);
  if (!args.out.present) check.fail_type("out is missing");
  check.output("out", args.out, "BQE", {args.value.dtype});
  check_channels(check, "out", args.out);
  if (uses_cuda_kernels(check.device()))
    return run(launch_target(check, args), ms_deform_attn_forward_launches(args));
  ALIGNMASK_ON_CPU(ms_deform_attn_forward_cpu, args);
}

namespace {

ArgumentCheck check_backward(const MSDeformAttnArgs& args) {
  ArgumentCheck check = check_inputs(args);
  check.input("grad_out", args.grad_out, "BQE", {args.value.dtype});
  check_channels(check, "grad_out", args.grad_out);
  check.output("grad_value", args.grad_value, "BSND", {args.value.dtype});
  check.output(args.names().grad_locations, args.grad_locations, "BQNLP2", {args.locations.dtype});
  check.output(args.names().grad_weights, args.grad_weights, "BQNLP", {args.weights.dtype});
  if (args.form == Form::kLocations && args.grad_reference.present)
    check.fail_value("grad_reference is given, but no reference");
  check.output("grad_reference", args.grad_reference, "BQL2", {args.reference.dtype});
  return check;
}

}  // namespace

void ms_deform_attn_backward(const MSDeformAttnArgs& args) {
  ArgumentCheck check = check_backward(args);
  if (uses_cuda_kernels(check.device())) {
    check.workspace(args.workspace, ms_deform_attn_backward_workspace_bytes(args));
    return run(launch_target(check, args), ms_deform_attn_backward_launches(args));
  }
  ALIGNMASK_ON_CPU(ms_deform_attn_backward_cpu, args);
}

std::int64_t ms_deform_attn_backward_workspace(const MSDeformAttnArgs& args) {
  const ArgumentCheck check = check_backward(args);
  return uses_cuda_kernels(check.device()) ? ms_deform_attn_backward_workspace_bytes(args) : 0;
}

}  // namespace alignmask
