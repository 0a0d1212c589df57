// The third way to carry out launches, beside the CUDA runtime and NVRTC: the SIMT runtime. Tensors of the CPU go
// there.
#include "../../core/common/launch.h"

#include <set>
#include <utility>

#include "../../core/common/kernel_table.h"
#include "launched.h"
#include "runtime.h"

namespace alignmask {

KernelTable mask_iou_kernels();
KernelTable masked_point_pool_kernels();
KernelTable ms_deform_attn_kernels();
KernelTable quality_focal_loss_kernels();

namespace {

const KernelTable tables[] = {mask_iou_kernels(), masked_point_pool_kernels(), ms_deform_attn_kernels(),
                              quality_focal_loss_kernels()};

KernelFunction find_kernel(const std::string& name) {
  for (const KernelTable& table : tables)
    for (std::size_t i = 0; i < table.count; ++i)
      if (name == table.entries[i].name) return table.entries[i].function;
  throw simt::Error("no kernel is called " + name);
}

std::set<std::string> seen;

}  // namespace

std::set<std::string> all_kernels() {
  std::set<std::string> names;
  for (const KernelTable& table : tables)
    for (std::size_t i = 0; i < table.count; ++i) names.insert(table.entries[i].name);
  return names;
}

std::set<std::string> launched_kernels() { return std::exchange(seen, {}); }

bool is_launch_device(Device device) { return device.type == DeviceType::kCPU; }

void run(const LaunchTarget&, const std::vector<Launch>& launches) {
  for (const Launch& launch : launches) {
    seen.insert(launch.kernel);
    simt::launch(launch.blocks, launch.threads, find_kernel(launch.kernel), launch.params.data());
  }
}

}  // namespace alignmask
