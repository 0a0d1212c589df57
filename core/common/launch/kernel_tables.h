// All kernels for devices that this program was linked with.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.h"

namespace alignmask {

KernelTable mask_iou_kernels();
KernelTable masked_point_pool_kernels();
KernelTable ms_deform_attn_kernels();
KernelTable quality_focal_loss_kernels();

inline const std::vector<KernelTable>& kernel_tables() {
  static const std::vector<KernelTable> all = {mask_iou_kernels(), masked_point_pool_kernels(),
                                               ms_deform_attn_kernels(), quality_focal_loss_kernels()};
  return all;
}

/// The kernel of that name in C++, or null.
inline KernelFunction find_kernel(const std::string& name) {
  for (const KernelTable& table : kernel_tables())
    for (std::size_t i = 0; i < table.count; ++i)
      if (name == table.entries[i].name) return table.entries[i].function;
  return nullptr;
}

}  // namespace alignmask
