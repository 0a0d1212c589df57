// Which compiled copy of a CPU kernel runs on this machine.
#pragma once

#include <vector>

namespace alignmask {

enum class CpuIsa { kBaseline, kAvx2, kAvx512 };

const char* name(CpuIsa isa);

/// Instruction sets that were compiled in and that this machine has, ascending.
std::vector<CpuIsa> available_cpu_isas();

/// The one in use: the last available, unless select_cpu_isa() chose another.
CpuIsa cpu_isa();

/// For tests and measurements. Throws ValueError unless `isa` is available.
void select_cpu_isa(CpuIsa isa);

}  // namespace alignmask

// ALIGNMASK_FOR_EACH_ISA(void f(const Args&);) declares a kernel in the namespace of every
// instruction set. ALIGNMASK_ON_CPU(f, args); calls that of this machine's.
#if defined(ALIGNMASK_X86)
#define ALIGNMASK_FOR_EACH_ISA(declaration) \
  namespace baseline {                      \
  declaration                               \
  }                                         \
  namespace avx2 {                          \
  declaration                               \
  }                                         \
  namespace avx512 {                        \
  declaration                               \
  }
#define ALIGNMASK_ON_CPU(function, ...)    \
  do {                                     \
    switch (::alignmask::cpu_isa()) {      \
      case ::alignmask::CpuIsa::kBaseline: \
        baseline::function(__VA_ARGS__);   \
        break;                             \
      case ::alignmask::CpuIsa::kAvx2:     \
        avx2::function(__VA_ARGS__);       \
        break;                             \
      case ::alignmask::CpuIsa::kAvx512:   \
        avx512::function(__VA_ARGS__);     \
        break;                             \
    }                                      \
  } while (false)
#else
#define ALIGNMASK_FOR_EACH_ISA(declaration) \
  namespace baseline {                      \
  declaration                               \
  }
#define ALIGNMASK_ON_CPU(function, ...) baseline::function(__VA_ARGS__)
#endif
