#include "launches.h"

#include <algorithm>

#include "params.h"

namespace alignmask {

namespace {

/// Can lanes read 16 bytes of logits at once, and write as many of the gradient?
bool is_packed(const QualityFocalLossArgs& args, int vector) {
  const TensorView &logits = args.logits, &gradient = args.grad_logits;
  return logits.shape[1] % vector == 0 && logits.strides[1] == 1 && is_aligned(logits, 1, vector) &&
         (!gradient.present || (gradient.strides[1] == 1 && is_aligned(gradient, 1, 4)));
}

}  // namespace

std::vector<Launch> quality_focal_loss_forward_launches(const QualityFocalLossArgs& args) {
  QualityFocalLossParams params = {};
  params.rows = args.logits.shape[0];
  params.classes = args.logits.shape[1];
  if (params.rows == 0) return {};
  params.logits = args.logits.data;
  params.label = args.label.data;
  params.iou = args.iou.data;
  params.loss = args.loss.data;
  std::copy(args.logits.strides, args.logits.strides + 2, params.logits_strides);
  params.label_stride = args.label.strides[0];
  params.iou_stride = args.iou.strides[0];
  params.loss_stride = args.loss.strides[0];
  if (args.grad_logits.present) {
    params.grad_logits = args.grad_logits.data;
    std::copy(args.grad_logits.strides, args.grad_logits.strides + 2, params.grad_strides);
  }
  params.label_wide = args.label.dtype == DType::kInt64;
  params.iou_type = element_type(args.iou.dtype);
  params.gamma = args.gamma;
  params.theta = args.theta;
  const DType dtype = args.logits.dtype;
  int vector = 16 / element_bytes(dtype);
  if (dtype == DType::kFloat64 || !is_packed(args, vector)) vector = 1;
  const std::string name = std::string("quality_focal_loss_forward<") + kernel_type(dtype) + ", " +
                           std::to_string(vector) + ", " + (args.gamma == 2 ? "true" : "false") +
                           ">";
  return {
      make_launch(name, blocks_for(params.rows, kLossThreads / kLossLanes), kLossThreads, params)};
}

}  // namespace alignmask
