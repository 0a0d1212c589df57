// What the module is made of. One function per op, each in bindings/<op>.cpp: adds <op>_forward, <op>_backward, ...
#pragma once

#include <pybind11/pybind11.h>

namespace alignmask {

/// Makes the core's errors those of Python.
void bind_errors();

/// Kernels for GPUs: what the build has, who launches them.
void bind_gpu(pybind11::module_& module);

void bind_mask_iou(pybind11::module_& module);
void bind_masked_point_pool(pybind11::module_& module);
void bind_ms_deform_attn(pybind11::module_& module);
void bind_quality_focal_loss(pybind11::module_& module);

}  // namespace alignmask
