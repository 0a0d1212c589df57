#include "ms_deform_attn/ms_deform_attn.h"

#include "common/check.h"
#include "op_function.h"

namespace alignmask {

namespace {

using Args = MSDeformAttnArgs;
using Names = Args::Names;

/// What errors call an argument whose meaning depends on the form.
template <const char* Names::* kName>
const char* of_form(const Args& args) {
  return args.names().*kName;
}

/// Its presence tells the forms apart.
struct Reference : OptionalTensor<Args> {
  void choose_form(pybind11::handle object, Args& args) const {
    args.form = object.is_none() ? Args::Form::kLocations : Args::Form::kOffsets;
  }
};

/// Height and width of level 0, height and width of level 1, ...
struct LevelShapes : Argument<Args> {
  void read_scalar(pybind11::handle object, Args& args) const {
    const std::vector<std::int64_t> sizes = ints_arg(args.op(), name, object);
    if (sizes.size() % 2)
      throw ValueError(std::string(args.op()) + ": " + name + " must hold pairs (h, w)");
    for (std::size_t i = 0; i < sizes.size(); i += 2)
      args.levels.push_back({sizes[i], sizes[i + 1]});
  }
};

}  // namespace

void bind_ms_deform_attn(pybind11::module_& module) {
  const auto value = tensor("value", &Args::value);
  const LevelShapes level_shapes{{"level_shapes"}};
  const auto locations = tensor("locations", &Args::locations, of_form<&Names::locations>);
  const auto weights = tensor("weights", &Args::weights, of_form<&Names::weights>);
  const Reference reference{optional_tensor("reference", &Args::reference)};
  const auto threads = scalar("threads", &Args::threads);
  const auto on_stream = stream("stream", &Args::stream);

  def_op(module, "ms_deform_attn_forward", ms_deform_attn_forward,
         "Write out. With reference, locations are offsets and weights are logits; see "
         "core/ms_deform_attn/ms_deform_attn.h.",
         tensor("out", &Args::out), value, level_shapes, locations, weights, threads, reference,
         on_stream);
  def_op(module, "ms_deform_attn_backward", ms_deform_attn_backward,
         ms_deform_attn_backward_workspace,
         "Write the gradients that are not None; see core/ms_deform_attn/ms_deform_attn.h.",
         tensor("grad_value", &Args::grad_value),
         tensor("grad_locations", &Args::grad_locations, of_form<&Names::grad_locations>),
         tensor("grad_weights", &Args::grad_weights, of_form<&Names::grad_weights>),
         tensor("grad_out", &Args::grad_out), value, level_shapes, locations, weights, threads,
         reference, optional_tensor("grad_reference", &Args::grad_reference),
         scalar("deterministic", &Args::deterministic), workspace("workspace", &Args::workspace),
         on_stream);
}

}  // namespace alignmask
