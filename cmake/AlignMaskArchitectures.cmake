# Which GPUs nvcc compiles our kernels for. From sm_90 on they add four floats at once, which nvcc before 12.1 cannot assemble.

# Sets `architectures` to those of a release, for nvcc of a version; the last one with PTX, for all that is newer.
function(alignmask_architectures_of_a_release version architectures)
  if(version VERSION_LESS 12.1)
    set(${architectures} 70-real 75-real 80-real 86-real 89 PARENT_SCOPE)
  elseif(version VERSION_LESS 13.0)
    set(${architectures} 70-real 75-real 80-real 86-real 89-real 90 PARENT_SCOPE)
  else()
    set(${architectures} 75-real 80-real 86-real 89-real 90-real 100-real 120 PARENT_SCOPE)  # no more Volta
  endif()
endfunction()

# Of `gpus`, e.g. "61-real;80-real", those that nvcc can compile our kernels for: sm_70 or newer, and not too old or new for it.
function(alignmask_that_nvcc_compiles_for gpus possible others)
  execute_process(COMMAND ${ALIGNMASK_NVCC} --list-gpu-code OUTPUT_VARIABLE known RESULT_VARIABLE failed ERROR_QUIET)
  execute_process(COMMAND ${ALIGNMASK_NVCC} --version OUTPUT_VARIABLE version ERROR_QUIET)
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" matched "${version}")
  set(version ${CMAKE_MATCH_1})
  set(can "")
  set(cannot "")
  foreach(gpu IN LISTS gpus)
    string(REPLACE "-real" "" number "${gpu}")
    if(number LESS 70 OR failed OR NOT known MATCHES "sm_${number}[^0-9]"
       OR (number GREATER_EQUAL 90 AND version VERSION_LESS 12.1))
      list(APPEND cannot "sm_${number}")
    else()
      list(APPEND can "${gpu}")
    endif()
  endforeach()
  set(${possible} "${can}" PARENT_SCOPE)
  set(${others} "${cannot}" PARENT_SCOPE)
endfunction()
