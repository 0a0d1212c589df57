// Which kernels there are, and which have run.
#pragma once

#include <set>
#include <string>

namespace alignmask {

std::set<std::string> all_kernels();

/// Since the last call.
std::set<std::string> launched_kernels();

}  // namespace alignmask
