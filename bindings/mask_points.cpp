#include "mask_points/mask_points.h"

#include "op_function.h"

namespace alignmask {

void bind_mask_points(pybind11::module_& module) {
  using Args = MaskPointsArgs;
  const auto points = tensor("points", &Args::points);
  const auto threads = scalar("threads", &Args::threads);
  const auto on_stream = stream("stream", &Args::stream);

  def_op(module, "mask_points_forward", mask_points_forward,
         "Write sampled, targets and points; see core/mask_points/mask_points.h.",
         tensor("sampled", &Args::sampled), tensor("targets", &Args::targets), points,
         tensor("logits", &Args::logits), tensor("masks", &Args::masks),
         tensor("index", &Args::index), scalar("seed", &Args::seed),
         scalar("candidates", &Args::candidates), scalar("kept", &Args::kept), threads, on_stream);
  def_op(module, "mask_points_backward", mask_points_backward, mask_points_backward_workspace,
         "Write grad_logits; see core/mask_points/mask_points.h.",
         tensor("grad_logits", &Args::grad_logits), tensor("grad_sampled", &Args::grad_sampled),
         points, threads, scalar("deterministic", &Args::deterministic),
         workspace("workspace", &Args::workspace), on_stream);
}

}  // namespace alignmask
