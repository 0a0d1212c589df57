#include "kernels.cuh"

#include "common/launch/kernel_table.h"
#include "kernels.h"

namespace alignmask {

KernelTable mask_iou_kernels() {
  static const KernelEntry entries[] = {ALIGNMASK_MASK_IOU_KERNELS(ALIGNMASK_KERNEL_ENTRY)};
  return {entries, sizeof(entries) / sizeof(entries[0])};
}

}  // namespace alignmask
