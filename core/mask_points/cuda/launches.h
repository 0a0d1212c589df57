// Which CUDA kernels a call runs, with which parameters.
#pragma once

#include <vector>

#include "common/launch/launch.h"
#include "mask_points/mask_points.h"

namespace alignmask {

// Expect valid arguments. Throw ValueError if sizes are beyond what the kernels can count.
std::vector<Launch> mask_points_forward_launches(const MaskPointsArgs& args);
std::vector<Launch> mask_points_backward_launches(const MaskPointsArgs& args);

/// Bytes of workspace that the backward launches need.
std::int64_t mask_points_backward_workspace_bytes(const MaskPointsArgs& args);

}  // namespace alignmask
