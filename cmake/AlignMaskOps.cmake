# ALIGNMASK_OPS is the one list of ops. An op's files are found by convention:
#
#   core/<op>/<op>.cpp            checks the arguments and dispatches; compiled once
#   core/<op>/cpu/kernels.cpp     the CPU kernels; compiled once per instruction set, in a namespace of that name
#   core/<op>/cuda/launches.cpp   computes which CUDA kernels a call runs; compiled once
#   core/<op>/cuda/kernels.cuh    the CUDA kernels and the list of them, from which a .cu file is generated
#   bindings/<op>.cpp             bind_<op>()
#
# alignmask_add_op(<op>) adds the first three to the core, and appends the generated file to ALIGNMASK_CUDA_KERNELS.

set(ALIGNMASK_OPS
    mask_iou
    mask_points
    mask_rle
    masked_point_pool
    ms_deform_attn
    quality_focal_loss)
set(ALIGNMASK_GENERATED ${PROJECT_BINARY_DIR}/generated)

set(ALIGNMASK_WARNINGS -Wall -Wextra -Wno-psabi -Wno-ignored-attributes)

# Rounding may differ between instruction sets through fused multiply-adds. NaN and infinity keep their meaning.
# Functions begin at cache lines, or chance decides where their loops lie: of the same code it made one a fifth slower.
set(ALIGNMASK_CPU_FLAGS -ffp-contract=fast -fno-math-errno -fno-trapping-math -falign-functions=64)
# An op may need more: mask_points chooses the same points everywhere only if every operation is rounded by itself.
set(ALIGNMASK_CPU_FLAGS_mask_points -ffp-contract=off)

# (Races do not depend on the instruction set, and ThreadSanitizer makes builds slow.)
if(NOT ALIGNMASK_SANITIZE STREQUAL "thread" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(ALIGNMASK_X86 ON)
  set(ALIGNMASK_ISAS baseline avx2 avx512)
  set(ALIGNMASK_ISA_FLAGS_avx2 -march=x86-64-v3)
  set(ALIGNMASK_ISA_FLAGS_avx512 -march=x86-64-v4)
else()
  set(ALIGNMASK_ISAS baseline)
endif()

function(alignmask_add_op op)
  set(folder ${PROJECT_SOURCE_DIR}/core/${op})
  target_sources(alignmask_core PRIVATE ${folder}/${op}.cpp ${folder}/cuda/launches.cpp)
  set(generated ${ALIGNMASK_GENERATED}/${op}_kernels.cu)
  configure_file(${PROJECT_SOURCE_DIR}/cmake/kernels.cu.in ${generated} @ONLY)
  list(APPEND ALIGNMASK_CUDA_KERNELS ${generated})
  set(ALIGNMASK_CUDA_KERNELS ${ALIGNMASK_CUDA_KERNELS} PARENT_SCOPE)
  foreach(isa IN LISTS ALIGNMASK_ISAS)
    set(object alignmask_${op}_${isa})
    add_library(${object} OBJECT ${folder}/cpu/kernels.cpp)
    target_include_directories(${object} PRIVATE ${PROJECT_SOURCE_DIR}/core)
    target_compile_definitions(${object} PRIVATE ALIGNMASK_ISA=${isa})
    target_compile_options(${object} PRIVATE ${ALIGNMASK_WARNINGS} ${ALIGNMASK_CPU_FLAGS} ${ALIGNMASK_CPU_FLAGS_${op}}
                           ${ALIGNMASK_ISA_FLAGS_${isa}})
    if(ALIGNMASK_X86)
      target_compile_definitions(${object} PRIVATE ALIGNMASK_X86)
    endif()
    target_sources(alignmask_core PRIVATE $<TARGET_OBJECTS:${object}>)
  endforeach()
endfunction()

# Generates `file` from a template in this folder: @declarations@ and @calls@ are `declaration` and `call` for every op,
# with its name for <op>, one a line.
function(alignmask_for_each_op template file declaration call)
  set(declarations "")
  set(calls "")
  foreach(op IN LISTS ALIGNMASK_OPS)
    string(REPLACE "<op>" "${op}" one "${declaration}")
    string(APPEND declarations "${one}\n")
    string(REPLACE "<op>" "${op}" one "${call}")
    string(APPEND calls "${one}\n")
  endforeach()
  configure_file(${PROJECT_SOURCE_DIR}/cmake/${template} ${file} @ONLY)
endfunction()
