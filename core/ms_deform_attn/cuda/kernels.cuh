// The kernels of multi-scale deformable attention for GPUs.
#pragma once

#include "backward.cuh"
#include "common/cuda/gradient.cuh"
#include "forward.cuh"
#include "ordered.cuh"
#include "value_gradient.cuh"
