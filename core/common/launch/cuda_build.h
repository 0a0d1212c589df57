// What this build contains for GPUs.
#pragma once

#include <string>

namespace alignmask {

struct CudaBuild {
  std::string
      architectures;     ///< as CMake lists them: "80-real 90"; empty: no kernels are compiled in
  std::string why_not;   ///< if so, why
  std::string compiler;  ///< e.g. "nvcc 13.0"
  int runtime = 0;       ///< version of the CUDA runtime inside, as CUDA counts: 13000 is 13.0
  int driver = 0;        ///< newest version that the driver supports; 0 without a driver
};

CudaBuild cuda_build();

}  // namespace alignmask
