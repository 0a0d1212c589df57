// The third way to carry out launches, beside the CUDA runtime and NVRTC: the SIMT runtime. Tensors
// of the CPU go there.
#include "common/launch/launch.h"

#include <set>
#include <utility>

#include "common/launch/kernel_table.h"
#include "launched.h"
#include "runtime.h"

namespace alignmask {

namespace {

std::set<std::string> seen;
std::vector<Launch>* recording = nullptr;

}  // namespace

std::set<std::string> all_kernels() {
  std::set<std::string> names;
  for (const KernelTable& table : kernel_tables())
    for (std::size_t i = 0; i < table.count; ++i) names.insert(table.entries[i].name);
  return names;
}

std::set<std::string> launched_kernels() { return std::exchange(seen, {}); }

bool uses_cuda_kernels(Device device) { return device.type == DeviceType::kCPU; }

void record_launches(std::vector<Launch>* to) { recording = to; }

void run_on_simt(const Launch& launch) {
  const KernelFunction kernel = find_kernel(launch.kernel);
  if (!kernel) throw simt::Error("no kernel is called " + launch.kernel);
  seen.insert(launch.kernel);
  simt::launch(launch.blocks, launch.threads, kernel, launch.params.data());
}

void run(const LaunchTarget&, const std::vector<Launch>& launches) {
  for (const Launch& launch : launches) {
    if (recording) recording->push_back(launch);
    run_on_simt(launch);
  }
}

}  // namespace alignmask
