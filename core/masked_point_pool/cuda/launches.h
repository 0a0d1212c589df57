// Which CUDA kernels a call runs, with which parameters.
#pragma once

#include <vector>

#include "common/launch/launch.h"
#include "masked_point_pool/masked_point_pool.h"

namespace alignmask {

// Expect valid arguments. Throw ValueError if sizes are beyond what the kernels can count.
std::vector<Launch> masked_point_pool_forward_launches(const MaskedPointPoolArgs& args);
std::vector<Launch> masked_point_pool_backward_launches(const MaskedPointPoolArgs& args);

/// Bytes of workspace that the backward launches need.
std::int64_t masked_point_pool_backward_workspace_bytes(const MaskedPointPoolArgs& args);

}  // namespace alignmask
