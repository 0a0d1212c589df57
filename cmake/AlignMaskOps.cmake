# alignmask_add_op(<name>): adds an op's files to the core, found by convention in core/<name>/.
#
#   <name>.cpp         validates and dispatches; compiled once
#   cpu/kernels.cpp    the CPU kernels; compiled once per instruction set, in a namespace of that name
#   cuda/launches.cpp  computes which CUDA kernels a call runs; compiled once
#   cuda/kernels.cu    the CUDA kernels; compiled once, where CUDA is built

set(ALIGNMASK_WARNINGS -Wall -Wextra -Wno-psabi -Wno-ignored-attributes)

# Rounding may differ between instruction sets through fused multiply-adds. NaN and infinity keep their meaning.
set(ALIGNMASK_CPU_FLAGS -ffp-contract=fast -fno-math-errno -fno-trapping-math)

# (Races do not depend on the instruction set, and ThreadSanitizer makes builds slow.)
if(NOT ALIGNMASK_SANITIZE STREQUAL "thread" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(ALIGNMASK_X86 ON)
  set(ALIGNMASK_ISAS baseline avx2 avx512)
  set(ALIGNMASK_ISA_FLAGS_avx2 -march=x86-64-v3)
  set(ALIGNMASK_ISA_FLAGS_avx512 -march=x86-64-v4)
else()
  set(ALIGNMASK_ISAS baseline)
endif()

function(alignmask_add_op name)
  set(folder ${PROJECT_SOURCE_DIR}/core/${name})
  target_sources(alignmask_core PRIVATE ${folder}/${name}.cpp)
  if(EXISTS ${folder}/cuda/launches.cpp)
    target_sources(alignmask_core PRIVATE ${folder}/cuda/launches.cpp)
  endif()
  if(ALIGNMASK_WITH_CUDA AND EXISTS ${folder}/cuda/kernels.cu)
    target_sources(alignmask_core PRIVATE ${folder}/cuda/kernels.cu)
  endif()
  foreach(isa IN LISTS ALIGNMASK_ISAS)
    set(object alignmask_${name}_${isa})
    add_library(${object} OBJECT ${folder}/cpu/kernels.cpp)
    target_include_directories(${object} PRIVATE ${PROJECT_SOURCE_DIR}/core)
    target_compile_definitions(${object} PRIVATE ALIGNMASK_ISA=${isa})
    target_compile_options(${object} PRIVATE ${ALIGNMASK_WARNINGS} ${ALIGNMASK_CPU_FLAGS} ${ALIGNMASK_ISA_FLAGS_${isa}})
    if(ALIGNMASK_X86)
      target_compile_definitions(${object} PRIVATE ALIGNMASK_X86)
    endif()
    target_sources(alignmask_core PRIVATE $<TARGET_OBJECTS:${object}>)
  endforeach()
endfunction()
