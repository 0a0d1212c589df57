// One function per op, each in bindings/<op>.cpp: adds <op>_forward, <op>_backward, ... to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace alignmask {

void bind_ms_deform_attn(pybind11::module_& module);

}  // namespace alignmask
