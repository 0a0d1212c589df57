// The kernels of point sampling and masked average pooling for GPUs.
#pragma once

#include "../common/gradient.cuh"
#include "masked_point_pool_backward.cuh"
#include "masked_point_pool_forward.cuh"
#include "masked_point_pool_ordered.cuh"
