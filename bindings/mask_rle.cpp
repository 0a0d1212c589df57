#include "mask_rle/mask_rle.h"

#include "op_function.h"

namespace alignmask {

void bind_mask_rle(pybind11::module_& module) {
  using Args = MaskRleArgs;
  const auto logits = tensor("logits", &Args::logits);
  const auto height = scalar("height", &Args::height), width = scalar("width", &Args::width);
  const auto padded_height = scalar("padded_height", &Args::padded_height);
  const auto padded_width = scalar("padded_width", &Args::padded_width);
  const auto valid_height = scalar("valid_height", &Args::valid_height);
  const auto valid_width = scalar("valid_width", &Args::valid_width);
  const auto threads = scalar("threads", &Args::threads);
  const auto memory = workspace("workspace", &Args::workspace);
  const auto on_stream = stream("stream", &Args::stream);
  def_op(module, "mask_rle_forward", mask_rle_forward, mask_rle_forward_workspace,
         "Write runs, area, box and probability; see core/mask_rle/mask_rle.h.",
         tensor("runs", &Args::runs), tensor("area", &Args::area), tensor("box", &Args::box),
         tensor("probability", &Args::probability), logits, height, width, padded_height,
         padded_width, valid_height, valid_width, threads, memory, on_stream);
  def_op(module, "mask_rle_counts_forward", mask_rle_counts_forward,
         mask_rle_counts_forward_workspace,
         "Write counts, for which mask_rle_forward found the room; see core/mask_rle/mask_rle.h.",
         tensor("counts", &Args::counts), tensor("ends", &Args::ends), logits, height, width,
         padded_height, padded_width, valid_height, valid_width, threads, memory, on_stream);
}

}  // namespace alignmask
