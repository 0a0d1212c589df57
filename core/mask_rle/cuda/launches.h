// Which CUDA kernels a call runs, with which parameters.
#pragma once

#include <vector>

#include "common/launch/launch.h"
#include "mask_rle/mask_rle.h"

namespace alignmask {

/// Expect valid arguments. Throw ValueError if sizes are beyond what the kernels can count.
std::vector<Launch> mask_rle_forward_launches(const MaskRleArgs& args);
std::vector<Launch> mask_rle_counts_forward_launches(const MaskRleArgs& args);

/// Bytes of workspace that the launches need.
std::int64_t mask_rle_forward_workspace_bytes(const MaskRleArgs& args);
std::int64_t mask_rle_counts_forward_workspace_bytes(const MaskRleArgs& args);

}  // namespace alignmask
