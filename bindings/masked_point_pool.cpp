#include "masked_point_pool/masked_point_pool.h"

#include "op_function.h"

namespace alignmask {

void bind_masked_point_pool(pybind11::module_& module) {
  using Args = MaskedPointPoolArgs;
  const auto weight = tensor("weight", &Args::weight), masks = tensor("masks", &Args::masks),
             owner = tensor("owner", &Args::owner), points = tensor("points", &Args::points);
  const auto divide_by_points = scalar("divide_by_points", &Args::divide_by_points);
  const auto threads = scalar("threads", &Args::threads);
  const auto on_stream = stream("stream", &Args::stream);

  def_op(module, "masked_point_pool_forward", masked_point_pool_forward,
         "Write pooled and weight; see core/masked_point_pool/masked_point_pool.h.",
         tensor("pooled", &Args::pooled), weight, tensor("features", &Args::features), masks, owner,
         points, divide_by_points, threads, on_stream);
  def_op(module, "masked_point_pool_backward", masked_point_pool_backward,
         masked_point_pool_backward_workspace,
         "Write grad_features; see core/masked_point_pool/masked_point_pool.h.",
         tensor("grad_features", &Args::grad_features), tensor("grad_pooled", &Args::grad_pooled),
         weight, masks, owner, points, divide_by_points, threads,
         scalar("deterministic", &Args::deterministic), workspace("workspace", &Args::workspace),
         on_stream);
}

}  // namespace alignmask
