#include <pybind11/pybind11.h>

#include "../core/common/check.h"
#include "ops.h"

namespace py = pybind11;

namespace alignmask {

void bind_errors() {
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    }  // ValueError derives from std::invalid_argument, which pybind11 makes a ValueError
  });
}

}  // namespace alignmask
