// Which CUDA kernels a call runs, with which parameters.
#pragma once

#include <vector>

#include "common/launch/launch.h"
#include "mask_iou/mask_iou.h"

namespace alignmask {

/// Expects valid arguments. Throws ValueError if sizes are beyond what the kernels can count.
std::vector<Launch> mask_iou_forward_launches(const MaskIouArgs& args);

/// Bytes of workspace that the launches need.
std::int64_t mask_iou_forward_workspace_bytes(const MaskIouArgs& args);

}  // namespace alignmask
