// For builds without CUDA: no kernels for devices.
#include "check.h"
#include "launch.h"

namespace alignmask {

bool is_launch_device(Device device) { return device.type == DeviceType::kCUDA; }

void run(const LaunchTarget& target, const std::vector<Launch>&) {
  throw ValueError(std::string(target.op) + ": no kernel for device " + to_string(target.device) + " in this build");
}

}  // namespace alignmask
