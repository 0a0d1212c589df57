// The kernels of point sampling and masked average pooling for GPUs.
#pragma once

#include "backward.cuh"
#include "common/cuda/gradient.cuh"
#include "forward.cuh"
#include "ordered.cuh"
