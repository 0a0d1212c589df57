// Which CUDA kernels a call runs, with which parameters.
#pragma once

#include <vector>

#include "common/launch/launch.h"
#include "ms_deform_attn/ms_deform_attn.h"

namespace alignmask {

// Expect valid arguments. Throw ValueError if sizes are beyond what the kernels can count.
std::vector<Launch> ms_deform_attn_forward_launches(const MSDeformAttnArgs& args);
std::vector<Launch> ms_deform_attn_backward_launches(const MSDeformAttnArgs& args);

/// Bytes of workspace that the backward launches need.
std::int64_t ms_deform_attn_backward_workspace_bytes(const MSDeformAttnArgs& args);

}  // namespace alignmask
