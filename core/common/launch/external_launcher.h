// Launches on GPUs that no kernel of this build fits: code outside of the core carries them out.
#pragma once

#include <functional>

#include "launch.h"

namespace alignmask {

using ExternalLauncher = std::function<void(const LaunchTarget&, const std::vector<Launch>&)>;

/// From now on `launcher` carries out the launches for GPU `index`; an empty one leaves them to
/// this build.
void set_external_launcher(int index, ExternalLauncher launcher);

/// Lets the launcher of the target's device carry out the launches. False: there is none, and
/// nothing was done.
bool run_externally(const LaunchTarget& target, const std::vector<Launch>& launches);

}  // namespace alignmask
