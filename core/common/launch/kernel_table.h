// The kernels of an op by name. core/<op>/cuda/kernels.h lists them, kernels.cu instantiates them and tables them here.
#pragma once

#include <cstddef>

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

/// For lists of names alone.
#define ALIGNMASK_KERNEL_NAME(...) #__VA_ARGS__,

struct KernelEntry {
  const char* name;
  KernelFunction function;
};

struct KernelTable {
  const KernelEntry* entries;
  std::size_t count;
};

}  // namespace alignmask
