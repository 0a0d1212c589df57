// What the build has for GPUs, and launches that Python carries out.
#include <pybind11/pybind11.h>

#include <memory>

#include "common/launch/cuda_build.h"
#include "common/launch/external_launcher.h"
#include "ops.h"

namespace py = pybind11;

namespace alignmask {

namespace {

py::dict build() {
  const CudaBuild build = cuda_build();
  py::dict about;
  about["architectures"] = build.architectures;
  about["why_not"] = build.why_not;
  about["compiler"] = build.compiler;
  about["runtime"] = build.runtime;
  about["driver"] = build.driver;
  return about;
}

void set_python_launcher(int index, const py::object& function) {
  if (function.is_none()) return set_external_launcher(index, nullptr);
  // The core copies and drops launchers in threads that do not hold the GIL.
  const std::shared_ptr<py::object> shared(new py::object(function), [](py::object* object) {
    const py::gil_scoped_acquire acquired;
    delete object;
  });
  set_external_launcher(
      index, [shared](const LaunchTarget& target, const std::vector<Launch>& launches) {
        const py::gil_scoped_acquire acquired;
        py::list list;
        for (const Launch& launch : launches)
          list.append(py::make_tuple(launch.kernel, launch.blocks, launch.threads,
                                     py::bytes(reinterpret_cast<const char*>(launch.params.data()),
                                               launch.params.size())));
        try {
          (*shared)(target.op, target.device.index, reinterpret_cast<std::uintptr_t>(target.stream),
                    list);
        } catch (py::error_already_set& error) {
          if (!error.matches(PyExc_RuntimeError)) throw;
          const std::string message =
              describe(target) + ": " + py::str(error.value()).cast<std::string>();
          py::raise_from(error, PyExc_RuntimeError, message.c_str());
          throw py::error_already_set();
        }
      });
}

}  // namespace

void bind_gpu(py::module_& module) {
  module.def("cuda_build", build,
             "CUDA kernels in this build: architectures (empty: none), why_not, compiler, and the "
             "CUDA versions of "
             "the runtime inside and of the machine's driver (0: none).");
  module.def("set_launcher", set_python_launcher, py::arg("index"), py::arg("launch"),
             "Let launch(op, index, stream, [(kernel, blocks, threads, params), ...]) carry out "
             "the launches for GPU "
             "`index`; None leaves them to this build.");
}

}  // namespace alignmask
