#include "launches.h"

#include "common/arena.h"
#include "params.h"

namespace alignmask {

namespace {

struct Plan {
  std::vector<Launch> launches;
  std::int64_t workspace_bytes = 0;
};

/// As the arithmetic type rounds it.
double scale_of(int source, int resized, DType dtype) {
  if (dtype == DType::kFloat64) return static_cast<double>(source) / static_cast<double>(resized);
  return static_cast<double>(static_cast<float>(source) / static_cast<float>(resized));
}

MaskRleParams params_of(const MaskRleArgs& args) {
  MaskRleParams params = {};
  params.logits = args.logits.data;
  copy_strides(args.logits, params.logits_strides);
  params.masks = checked_int(args.logits.shape[0], MaskRleArgs::op(), "N");
  const int h = checked_int(args.logits.shape[1], MaskRleArgs::op(), "h"),
            w = checked_int(args.logits.shape[2], MaskRleArgs::op(), "w");
  const bool pad_same = h == args.padded_height && w == args.padded_width,
             same = args.valid_height == args.height && args.valid_width == args.width;
  const auto axis = [&](int logits, int padded, int valid, int size) {
    return RleAxis{logits,
                   valid,
                   size,
                   scale_of(logits, padded, args.logits.dtype),
                   scale_of(valid, size, args.logits.dtype),
                   pad_same,
                   same};
  };
  params.rows = axis(h, args.padded_height, args.valid_height, args.height);
  params.columns = axis(w, args.padded_width, args.valid_width, args.width);
  return params;
}

Launch by_columns(const std::string& kernel, const MaskRleParams& params) {
  const std::int64_t columns = std::int64_t{params.masks} * params.columns.size;
  return make_launch(kernel, blocks_for(columns, kRleWarps), kRleThreads, params);
}

Plan plan_forward(const MaskRleArgs& args, void* memory) {
  Plan plan;
  MaskRleParams params = params_of(args);
  if (params.masks == 0) return plan;
  params.runs = static_cast<int*>(args.runs.data);
  params.area = static_cast<long long*>(args.area.data);
  params.box = static_cast<long long*>(args.box.data);
  params.probability = args.probability.data;
  copy_strides(args.runs, params.runs_strides);
  params.area_stride = args.area.strides[0];
  copy_strides(args.box, params.box_strides);
  params.probability_stride = args.probability.strides[0];
  const std::int64_t columns = std::int64_t{params.masks} * params.columns.size;
  WorkspaceArena workspace(memory);
  params.sums = workspace.take<double>(columns);
  params.set = workspace.take<int>(columns);
  params.first_set = workspace.take<int>(columns);
  params.past_set = workspace.take<int>(columns);
  plan.workspace_bytes = workspace.bytes();
  plan.launches = {
      by_columns(std::string("mask_rle_measure<") + kernel_type(args.logits.dtype) + ">", params),
      make_launch(std::string("mask_rle_sum<") + kernel_type(args.probability.dtype) + ">",
                  blocks_for(params.masks, kRleWarps), kRleThreads, params)};
  return plan;
}

Plan plan_counts(const MaskRleArgs& args, void* memory) {
  Plan plan;
  MaskRleParams params = params_of(args);
  params.count_total = args.counts.shape[0];
  if (params.masks == 0 || params.count_total == 0) return plan;
  params.ends = static_cast<const long long*>(args.ends.data);
  params.counts = static_cast<int*>(args.counts.data);
  copy_strides(args.ends, params.ends_strides);
  params.counts_stride = args.counts.strides[0];
  WorkspaceArena workspace(memory);
  params.changes = workspace.take<int>(params.count_total);
  plan.workspace_bytes = workspace.bytes();
  plan.launches = {
      by_columns(std::string("mask_rle_changes<") + kernel_type(args.logits.dtype) + ">", params),
      by_columns("mask_rle_subtract<256>", params)};
  return plan;
}

void* memory_of(const MaskRleArgs& args) {
  return args.workspace.present ? args.workspace.data : nullptr;
}

}  // namespace

std::vector<Launch> mask_rle_forward_launches(const MaskRleArgs& args) {
  return plan_forward(args, memory_of(args)).launches;
}

std::vector<Launch> mask_rle_counts_forward_launches(const MaskRleArgs& args) {
  return plan_counts(args, memory_of(args)).launches;
}

std::int64_t mask_rle_forward_workspace_bytes(const MaskRleArgs& args) {
  return plan_forward(args, nullptr).workspace_bytes;
}

std::int64_t mask_rle_counts_forward_workspace_bytes(const MaskRleArgs& args) {
  return plan_counts(args, nullptr).workspace_bytes;
}

}  // namespace alignmask
