#include "launches.h"

#include <algorithm>

#include "common/arena.h"
#include "common/cuda/gradient_params.h"
#include "params.h"

namespace alignmask {

namespace {

struct Plan {
  std::vector<Launch> launches;
  std::int64_t workspace_bytes = 0;
};

/// Rows (or gaps) in a band: about as many pixels' rows as a block should read, and never 2^32
/// pixels.
int band_rows(std::int64_t factor, std::int64_t width) {
  const std::int64_t rows = std::max<std::int64_t>(1, kIouBandRows / factor);
  return checked_int(
      std::max<std::int64_t>(1, std::min(rows, (std::int64_t{1} << 32) / (factor * width + 1))),
      MaskIouArgs::op(), "rows");
}

/// Packing and counting, pixel by pixel.
void add_pixels(const MaskIouArgs& args, MaskIouParams params, std::vector<Launch>& launches) {
  const std::int64_t B = params.images, Q = params.queries, G = params.target_count;
  const bool upsamples = params.factor > 1;
  const bool aligned = args.targets.strides[2] == 1 && params.target_width % 16 == 0 &&
                       is_aligned(args.targets, 2, 16);
  launches.push_back(make_launch(
      std::string("mask_iou_pack<") + (aligned ? "true>" : "false>"),
      blocks_for(G * blocks_for(params.target_height, kIouPackedRows), 1), kIouThreads, params));
  params.band_rows = band_rows(params.factor, params.target_width);
  params.bands =
      static_cast<int>(blocks_for(params.height + (upsamples ? 1 : 0), params.band_rows));
  const std::int64_t blocks =
      B * blocks_for(Q, kIouQueries) * blocks_for(G, kIouTargets) * params.bands;
  launches.push_back(make_launch(std::string("mask_iou_count<") +
                                     kernel_type(args.predictions.dtype) +
                                     (upsamples ? ", true>" : ", false>"),
                                 blocks_for(blocks, 1), kIouThreads, params));
}

/// Packing and counting, by cells.
void add_cells(const MaskIouArgs& args, MaskIouParams params, std::vector<Launch>& launches) {
  const std::int64_t B = params.images, Q = params.queries, G = params.target_count;
  const std::int64_t rows = params.height + std::int64_t{1};
  checked_int(rows * params.row_words * 32, MaskIouArgs::op(), "cells");
  const bool aligned = args.targets.strides[2] == 1 && is_aligned(args.targets, 2, kIouCellFactor);
  launches.push_back(
      make_launch(std::string("mask_iou_pack_cells<") + (aligned ? "true>" : "false>"),
                  blocks_for((G + 1) * rows, kIouWarps), kIouThreads, params));
  params.band_rows = kIouCellRows;
  params.strips = static_cast<int>(blocks_for(rows, kIouCellRows)) * params.row_words;
  params.bands = static_cast<int>(blocks_for(params.strips, kIouWarps));
  const std::int64_t blocks =
      B * blocks_for(Q, kIouCellQueries) * blocks_for(G, kIouTargets) * params.bands;
  launches.push_back(
      make_launch(std::string("mask_iou_count_cells<") + kernel_type(args.predictions.dtype) + ">",
                  blocks_for(blocks, 1), kIouThreads, params));
}

Plan plan_forward(const MaskIouArgs& args, void* memory) {
  Plan plan;
  if (args.iou.elements() == 0) return plan;
  MaskIouParams params = {};
  params.predictions = args.predictions.data;
  params.targets = args.targets.data;
  params.owner = args.owner.data;
  params.iou = args.iou.data;
  copy_strides(args.predictions, params.predictions_strides);
  copy_strides(args.targets, params.targets_strides);
  params.owner_stride = args.owner.strides[0];
  copy_strides(args.iou, params.iou_strides);
  params.owner_wide = args.owner.dtype == DType::kInt64;
  params.images = checked_int(args.predictions.shape[0], MaskIouArgs::op(), "B");
  params.queries = checked_int(args.predictions.shape[1], MaskIouArgs::op(), "Q");
  params.height = checked_int(args.predictions.shape[2], MaskIouArgs::op(), "h");
  params.width = checked_int(args.predictions.shape[3], MaskIouArgs::op(), "w");
  params.target_count = checked_int(args.targets.shape[0], MaskIouArgs::op(), "G");
  params.target_height = checked_int(args.targets.shape[1], MaskIouArgs::op(), "H");
  params.target_width = checked_int(args.targets.shape[2], MaskIouArgs::op(), "W");
  params.factor = params.height > 0 ? params.target_height / params.height : 1;
  params.row_words = params.target_width / 32 + (params.target_width % 32 != 0);
  params.threshold = args.threshold;
  const bool by_cells = params.factor == kIouCellFactor && params.queries >= kIouCellQueries;
  if (by_cells)
    params.row_words = params.width / kIouCellsOfWord + 1;  // one cell more than columns

  WorkspaceArena workspace(memory);
  const std::int64_t G = params.target_count, Q = params.queries, B = params.images;
  const std::int64_t counts = G + B * Q + G * Q;
  auto* const count = workspace.take<unsigned long long>(counts);
  params.target_area = count;
  params.prediction_area = count ? count + G : nullptr;
  params.both = count ? count + G + B * Q : nullptr;
  if (by_cells) {
    const std::int64_t words = (G + 1) * (params.height + std::int64_t{1}) * params.row_words;
    params.planes = workspace.take<unsigned int>(words * kIouPlaneWords);
    params.pixels = workspace.take<unsigned short>(words * 32);
  } else {
    params.bits =
        workspace.take<unsigned int>(G * params.target_height * std::int64_t{params.row_words});
  }
  plan.workspace_bytes = workspace.bytes();

  plan.launches.push_back(make_launch("fill_zero<float>",
                                      blocks_for(counts * 8, kFillBytesPerBlock),
                                      kElementwiseThreads, FillParams{count, counts * 8}));
  if (B > 0 && params.target_height > 0 && params.target_width > 0) {
    by_cells ? add_cells(args, params, plan.launches) : add_pixels(args, params, plan.launches);
  }
  plan.launches.push_back(
      make_launch(std::string("mask_iou_divide<") + kernel_type(args.iou.dtype) + ">",
                  blocks_for(G * Q, kIouThreads), kIouThreads, params));
  return plan;
}

}  // namespace

std::vector<Launch> mask_iou_forward_launches(const MaskIouArgs& args) {
  return plan_forward(args, args.workspace.present ? args.workspace.data : nullptr).launches;
}

std::int64_t mask_iou_forward_workspace_bytes(const MaskIouArgs& args) {
  return plan_forward(args, nullptr).workspace_bytes;
}

}  // namespace alignmask
