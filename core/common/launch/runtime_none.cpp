// For builds without CUDA: only an external launcher can carry launches out.
#include "common/check.h"
#include "cuda_build.h"
#include "external_launcher.h"

namespace alignmask {

CudaBuild cuda_build() {
  CudaBuild build;
  build.why_not = ALIGNMASK_CUDA_WHY_NOT;
  return build;
}

bool uses_cuda_kernels(Device device) { return device.type == DeviceType::kCUDA; }

void run(const LaunchTarget& target, const std::vector<Launch>& launches) {
  if (!run_externally(target, launches))
    throw ValueError(std::string(target.op) + ": no kernel for device " + to_string(target.device) +
                     " in this build");
}

}  // namespace alignmask
