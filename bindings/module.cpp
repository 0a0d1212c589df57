// The extension module alignmask._core.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "common/check.h"
#include "common/cpu/dispatch.h"
#include "ops.h"

namespace py = pybind11;
using namespace alignmask;

PYBIND11_MODULE(_core, module) {
  module.doc() =
      "Kernels of AlignMask. They read torch tensors, NumPy arrays and DLPack tensors in place and "
      "write preallocated "
      "outputs.";
  bind_errors();

  module.def(
      "cpu_instruction_set", [] { return std::string(name(cpu_isa())); },
      "Name of the CPU code in use.");
  module.def(
      "cpu_instruction_sets",
      [] {
        std::vector<std::string> names;
        for (CpuIsa isa : available_cpu_isas()) names.emplace_back(name(isa));
        return names;
      },
      "Names of the CPU code that this machine can run, ascending.");
  module.def(
      "select_cpu_instruction_set",
      [](py::handle object) {
        if (!PyUnicode_Check(object.ptr()))
          throw TypeError("select_cpu_instruction_set: name must be a string, got " +
                          std::string(Py_TYPE(object.ptr())->tp_name));
        const auto wanted = object.attr("encode")("utf-8", "replace").cast<std::string>();
        for (CpuIsa isa : available_cpu_isas())
          if (wanted == name(isa)) return select_cpu_isa(isa);
        throw ValueError("select_cpu_instruction_set: no CPU code named '" + wanted +
                         "' for this machine");
      },
      py::arg("name"), "For tests and measurements.");

  bind_gpu(module);
  bind_ops(module);
}
