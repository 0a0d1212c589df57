// The CUDA kernels that this program was linked with, by name. core/<op>/cuda/kernels.cuh lists
// those of an op as ALIGNMASK_KERNELS; files that CMake generates instantiate them, and define
// kernel_tables().
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace alignmask {

#if defined(ALIGNMASK_SIMT)
using KernelFunction = void (*)(const void* params);

/// Calls a kernel with the parameters behind `params`.
template <class Params>
void call_kernel(void (*kernel)(Params), const void* params) {
  kernel(*static_cast<const Params*>(params));
}

#define ALIGNMASK_KERNEL_ENTRY(...) \
  {#__VA_ARGS__, [](const void* params) { ::alignmask::call_kernel(&__VA_ARGS__, params); }},
#else
using KernelFunction = const void*;  // as cudaLaunchKernel wants it
#define ALIGNMASK_KERNEL_ENTRY(...) {#__VA_ARGS__, reinterpret_cast<const void*>(&__VA_ARGS__)},
#endif

struct KernelEntry {
  const char* name;
  KernelFunction function;
};

/// Of one op.
struct KernelTable {
  const KernelEntry* entries;
  std::size_t count;
};

/// Of all ops.
const std::vector<KernelTable>& kernel_tables();

/// The kernel of that name in C++, or null.
inline KernelFunction find_kernel(const std::string& name) {
  for (const KernelTable& table : kernel_tables())
    for (std::size_t i = 0; i < table.count; ++i)
      if (name == table.entries[i].name) return table.entries[i].function;
  return nullptr;
}

}  // namespace alignmask
