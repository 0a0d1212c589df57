#include <pybind11/pybind11.h>

#include <cstdio>

#include "common/check.h"
#include "ops.h"

namespace py = pybind11;

namespace alignmask {

OutOfMemory::OutOfMemory(const char* op) {
  std::snprintf(text.data(), text.size(), "%s: out of memory for the kernel's temporaries", op);
}

void bind_errors() {
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    }  // pybind11 makes std::invalid_argument, such as ValueError, a ValueError, and std::bad_alloc
       // a MemoryError
  });
}

}  // namespace alignmask
