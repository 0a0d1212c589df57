// Which CUDA kernels a call runs, with which parameters.
#pragma once

#include <vector>

#include "common/launch/launch.h"
#include "quality_focal_loss/quality_focal_loss.h"

namespace alignmask {

/// Expects valid arguments.
std::vector<Launch> quality_focal_loss_forward_launches(const QualityFocalLossArgs& args);

}  // namespace alignmask
