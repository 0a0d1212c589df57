#include "kernels.cuh"

#include "common/launch/kernel_table.h"
#include "kernels.h"

namespace alignmask {

KernelTable quality_focal_loss_kernels() {
  static const KernelEntry entries[] = {ALIGNMASK_QUALITY_FOCAL_LOSS_KERNELS(ALIGNMASK_KERNEL_ENTRY)};
  return {entries, sizeof(entries) / sizeof(entries[0])};
}

}  // namespace alignmask
