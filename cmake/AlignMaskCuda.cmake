# CUDA kernels, compiled ahead of time by nvcc. ALIGNMASK_CUDA (a CMake option or an environment variable):
#
#   AUTO  for the GPUs of this machine, if it has nvcc and a driver; nothing otherwise, and a line says why
#   ON    for every architecture of the list below, GPU or not; it is an error if there is no nvcc
#   OFF   nothing
#
# The package works without them, too: it compiles the same sources on the machine with the GPU (alignmask.ops.jit).
# CMAKE_CUDA_ARCHITECTURES overrides the list.

include(${CMAKE_CURRENT_LIST_DIR}/AlignMaskArchitectures.cmake)

set(ALIGNMASK_CUDA "AUTO" CACHE STRING "Compile CUDA kernels: AUTO, ON, OFF")
set_property(CACHE ALIGNMASK_CUDA PROPERTY STRINGS AUTO ON OFF)
set(ALIGNMASK_WITH_CUDA OFF)

# Sets `architectures` to those of the GPUs at hand, e.g. "80-real;90-real", or to nothing.
function(alignmask_gpus_here architectures)
  set(${architectures} "" PARENT_SCOPE)
  find_program(ALIGNMASK_NVIDIA_SMI nvidia-smi)
  if(NOT ALIGNMASK_NVIDIA_SMI)
    return()
  endif()
  execute_process(COMMAND ${ALIGNMASK_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE output RESULT_VARIABLE failed ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${output}")
  if(failed OR NOT capabilities)
    return()
  endif()
  list(REMOVE_DUPLICATES capabilities)
  list(SORT capabilities COMPARE NATURAL)
  string(REPLACE "." "" capabilities "${capabilities}")
  list(TRANSFORM capabilities APPEND "-real")
  set(${architectures} "${capabilities}" PARENT_SCOPE)
endfunction()

macro(alignmask_without_cuda why)
  set(ALIGNMASK_CUDA_WHY_NOT "${why}")
  message(STATUS "AlignMask: no CUDA kernels are compiled: ${why}")
endmacro()

string(TOUPPER "${ALIGNMASK_CUDA}" alignmask_cuda)
if(alignmask_cuda STREQUAL "")
  set(alignmask_cuda AUTO)
endif()
if(NOT CMAKE_CUDA_COMPILER AND DEFINED ENV{CUDACXX})
  set(ALIGNMASK_NVCC $ENV{CUDACXX})
else()
  find_program(ALIGNMASK_NVCC nvcc PATHS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin /usr/local/cuda/bin)
endif()
if(alignmask_cuda STREQUAL "AUTO")
  alignmask_gpus_here(alignmask_gpus)
  if(alignmask_gpus AND ALIGNMASK_NVCC)
    alignmask_that_nvcc_compiles_for("${alignmask_gpus}" alignmask_gpus alignmask_others)
  endif()
endif()

if(NOT alignmask_cuda MATCHES "^(AUTO|ON|OFF|AOT|JIT)$")
  message(FATAL_ERROR "ALIGNMASK_CUDA is \"${ALIGNMASK_CUDA}\": expected AUTO, ON or OFF")
elseif(alignmask_cuda MATCHES "^(OFF|JIT)$")
  alignmask_without_cuda("switched off (ALIGNMASK_CUDA=${ALIGNMASK_CUDA})")
elseif(NOT ALIGNMASK_NVCC AND NOT CMAKE_CUDA_COMPILER AND alignmask_cuda STREQUAL "AUTO")
  alignmask_without_cuda("there is no nvcc")
elseif(alignmask_cuda STREQUAL "AUTO" AND NOT alignmask_gpus AND alignmask_others)
  alignmask_without_cuda("this nvcc, or our code, is not for the GPUs here (${alignmask_others})")
elseif(alignmask_cuda STREQUAL "AUTO" AND NOT alignmask_gpus)
  alignmask_without_cuda("nvcc is there, but no GPU (ALIGNMASK_CUDA=ON compiles nevertheless)")
else()
  set(ALIGNMASK_WITH_CUDA ON)
  if(NOT CMAKE_CUDA_COMPILER AND ALIGNMASK_NVCC)
    set(CMAKE_CUDA_COMPILER ${ALIGNMASK_NVCC})
  endif()
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "ALIGNMASK_CUDA=${ALIGNMASK_CUDA}, but there is no nvcc: put it on the PATH or set CUDACXX")
  endif()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" matched "${output}")
  set(ALIGNMASK_CUDA_VERSION ${CMAKE_MATCH_1})
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    if(alignmask_gpus)
      set(CMAKE_CUDA_ARCHITECTURES ${alignmask_gpus})
    else()
      alignmask_architectures_of_a_release(${ALIGNMASK_CUDA_VERSION} CMAKE_CUDA_ARCHITECTURES)
    endif()
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  message(STATUS "AlignMask: CUDA kernels by nvcc ${ALIGNMASK_CUDA_VERSION}: ${CMAKE_CUDA_ARCHITECTURES}")
endif()

# Adds what runs launches: the CUDA runtime, or a message that this build has none.
function(alignmask_add_launches target)
  if(NOT ALIGNMASK_WITH_CUDA)
    set(file ${PROJECT_SOURCE_DIR}/core/common/launch/runtime_none.cpp)
    set(definitions "ALIGNMASK_CUDA_WHY_NOT=\"${ALIGNMASK_CUDA_WHY_NOT}\"")
  else()
    set(file ${PROJECT_SOURCE_DIR}/core/common/launch/runtime.cpp)
    list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
    set(definitions "ALIGNMASK_CUDA_ARCHITECTURES=\"${architectures}\""
                    "ALIGNMASK_CUDA_COMPILER=\"nvcc ${ALIGNMASK_CUDA_VERSION}\"")
    # Smallest: what a size costs is the download, not the milliseconds when a kernel is first loaded.
    if(ALIGNMASK_CUDA_VERSION VERSION_LESS 13.0)
      set(compress -Xfatbin=-compress-all)  # which every driver of CUDA 12 reads
    else()
      set(compress --compress-mode=size)
    endif()
    target_compile_options(${target} PRIVATE
      "$<$<COMPILE_LANGUAGE:CUDA>:--threads=0;${compress};-Wno-deprecated-gpu-targets;-Xcompiler=-fvisibility=hidden>")
    set_target_properties(${target} PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static)
    target_link_libraries(${target} PRIVATE CUDA::cudart_static ${CMAKE_DL_LIBS})
  endif()
  target_sources(${target} PRIVATE ${file})
  set_source_files_properties(${file} PROPERTIES COMPILE_DEFINITIONS "${definitions}")
endfunction()
