// Launches on the SIMT runtime: which kernels there are, which have run, and how to run one.
#pragma once

#include <set>
#include <string>

#include "common/launch/launch.h"

namespace alignmask {

std::set<std::string> all_kernels();

/// Since the last call.
std::set<std::string> launched_kernels();

void run_on_simt(const Launch& launch);

/// From now on; null: no more.
void record_launches(std::vector<Launch>* to);

}  // namespace alignmask
