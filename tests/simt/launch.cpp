// The third way to carry out launches, beside the CUDA runtime and NVRTC: the SIMT runtime. Tensors of the CPU go
// there.
#include "../../core/common/launch.h"

#include "../../core/common/kernel_table.h"
#include "runtime.h"

namespace alignmask {

KernelTable ms_deform_attn_kernels();

namespace {

KernelFunction find_kernel(const std::string& name) {
  for (const KernelTable table : {ms_deform_attn_kernels()})
    for (std::size_t i = 0; i < table.count; ++i)
      if (name == table.entries[i].name) return table.entries[i].function;
  throw simt::Error("no kernel is called " + name);
}

}  // namespace

bool is_launch_device(Device device) { return device.type == DeviceType::kCPU; }

void run(const LaunchTarget&, const std::vector<Launch>& launches) {
  for (const Launch& launch : launches)
    simt::launch(launch.blocks, launch.threads, find_kernel(launch.kernel), launch.params.data());
}

}  // namespace alignmask
