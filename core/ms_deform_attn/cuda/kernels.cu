#include "kernels.cuh"

#include "common/launch/kernel_table.h"
#include "kernels.h"

namespace alignmask {

KernelTable ms_deform_attn_kernels() {
  static const KernelEntry entries[] = {ALIGNMASK_MS_DEFORM_ATTN_KERNELS(ALIGNMASK_KERNEL_ENTRY)};
  return {entries, sizeof(entries) / sizeof(entries[0])};
}

}  // namespace alignmask
