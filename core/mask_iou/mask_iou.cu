#include "mask_iou.cuh"

#include "../common/kernel_table.h"
#include "mask_iou_kernels.h"

namespace alignmask {

KernelTable mask_iou_kernels() {
  static const KernelEntry entries[] = {ALIGNMASK_MASK_IOU_KERNELS(ALIGNMASK_KERNEL_ENTRY)};
  return {entries, sizeof(entries) / sizeof(entries[0])};
}

}  // namespace alignmask
