// The kernels of multi-scale deformable attention for GPUs.
#pragma once

#include "../common/gradient.cuh"
#include "ms_deform_attn_backward.cuh"
#include "ms_deform_attn_forward.cuh"
#include "ms_deform_attn_ordered.cuh"
#include "ms_deform_attn_value_gradient.cuh"
