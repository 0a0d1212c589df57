#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <string>

#include "common/check.h"
#if defined(ALIGNMASK_X86)
#include <cpuid.h>
#endif

namespace alignmask {

namespace {

#if defined(ALIGNMASK_X86)
/// The instructions that cmake/AlignMaskOps.cmake lets the compiler use for `avx2`. Not every
/// compiler's
/// __builtin_cpu_supports knows F16C, LZCNT and MOVBE.
bool runs_x86_64_v3() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2"))
    return false;
  unsigned a, b, c, d;
  constexpr unsigned kMovbe = 1u << 22, kF16c = 1u << 29, kLzcnt = 1u << 5;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & kMovbe) && (c & kF16c) &&
         __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & kLzcnt);
}

/// For `avx512`, beyond the above.
bool runs_x86_64_v4() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#endif

}  // namespace

const char* name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    default:
      return "baseline";
  }
}

std::vector<CpuIsa> available_cpu_isas() {
  std::vector<CpuIsa> isas = {CpuIsa::kBaseline};
#if defined(ALIGNMASK_X86)
  __builtin_cpu_init();
  if (runs_x86_64_v3()) {
    isas.push_back(CpuIsa::kAvx2);
    if (runs_x86_64_v4()) isas.push_back(CpuIsa::kAvx512);
  }
#endif
  return isas;
}

namespace {
std::atomic<CpuIsa>& selected() {
  static std::atomic<CpuIsa> isa{available_cpu_isas().back()};
  return isa;
}
}  // namespace

CpuIsa cpu_isa() { return selected().load(std::memory_order_relaxed); }

void select_cpu_isa(CpuIsa isa) {
  const std::vector<CpuIsa> available = available_cpu_isas();
  if (std::find(available.begin(), available.end(), isa) == available.end())
    throw ValueError(std::string("this machine does not run ") + name(isa) + " code");
  selected().store(isa, std::memory_order_relaxed);
}

}  // namespace alignmask
