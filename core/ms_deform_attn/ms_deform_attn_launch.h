// Which kernels a call on a GPU runs, with which parameters.
#pragma once

#include <vector>

#include "../common/launch.h"
#include "ms_deform_attn.h"

namespace alignmask {

/// Expect valid arguments. Throw ValueError if there are more levels than a launch can carry.
std::vector<Launch> ms_deform_attn_forward_launches(const MSDeformAttnArgs& args);

}  // namespace alignmask
