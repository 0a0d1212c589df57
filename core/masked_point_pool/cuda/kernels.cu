#include "kernels.cuh"

#include "common/launch/kernel_table.h"
#include "kernels.h"

namespace alignmask {

KernelTable masked_point_pool_kernels() {
  static const KernelEntry entries[] = {ALIGNMASK_MASKED_POINT_POOL_KERNELS(ALIGNMASK_KERNEL_ENTRY)};
  return {entries, sizeof(entries) / sizeof(entries[0])};
}

}  // namespace alignmask
