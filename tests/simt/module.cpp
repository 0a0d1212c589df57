// alignmask._core with the CUDA kernels in place of the CPU kernels, and the switches of the SIMT
// runtime.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "../../bindings/ops.h"
#include "launched.h"
#include "planted.h"
#include "runtime.h"

namespace py = pybind11;

namespace {

void set_order(const std::string& order, unsigned seed) {
  if (order == "ascending") return simt::set_order(simt::Order::kAscending);
  if (order == "descending") return simt::set_order(simt::Order::kDescending);
  if (order == "shuffled") return simt::set_order(simt::Order::kShuffled, seed);
  throw std::invalid_argument("order is ascending, descending or shuffled, not " + order);
}

/// Sums of 128 numbers each, and how many of them are positive. The numbers lie in the middle of
/// others that are NaN.
py::tuple planted(const std::string& bug, const std::vector<float>& numbers) {
  constexpr std::size_t kThreads = alignmask::kPlantedThreads;
  std::vector<float> guarded(2 * kThreads + numbers.size(), std::nanf(""));
  std::copy(numbers.begin(), numbers.end(), guarded.begin() + kThreads);
  const std::size_t blocks = (numbers.size() + kThreads - 1) / kThreads;
  std::vector<float> sums(blocks + 1, std::nanf(""));
  std::vector<int> positive(blocks);
  alignmask::run_planted(bug, guarded.data() + kThreads, static_cast<int>(numbers.size()),
                         sums.data(), positive.data());
  return py::make_tuple(sums, positive);
}

/// A launch as alignmask._core hands it to Python.
void launch(const std::string& kernel, unsigned blocks, unsigned threads, const py::bytes& params) {
  const std::string bytes = params;
  alignmask::run_on_simt({kernel, blocks, threads, {bytes.begin(), bytes.end()}});
}

/// What an op launches while call() runs, as alignmask._core hands it to Python.
std::vector<py::tuple> record(const py::object& call) {
  std::vector<alignmask::Launch> launches;
  alignmask::record_launches(&launches);
  try {
    call();
  } catch (...) {
    alignmask::record_launches(nullptr);
    throw;
  }
  alignmask::record_launches(nullptr);
  std::vector<py::tuple> result;
  for (const alignmask::Launch& launch : launches)
    result.push_back(py::make_tuple(
        launch.kernel, launch.blocks, launch.threads,
        py::bytes(reinterpret_cast<const char*>(launch.params.data()), launch.params.size())));
  return result;
}

}  // namespace

PYBIND11_MODULE(_simt, module) {
  alignmask::bind_errors();
  alignmask::bind_ops(module);
  module.def("cpu_instruction_set", [] { return "simt"; });

  py::register_exception<simt::Error>(module, "Error", PyExc_RuntimeError);
  module.def("set_order", set_order, py::arg("order"), py::arg("seed") = 0,
             "The order in which threads take turns from now on: ascending, descending, shuffled.");
  module.def("set_vector_atomics", simt::set_vector_atomics, py::arg("has"),
             "Shall kernels add several floats at once, as from sm_90 on?");
  module.def("all_kernels", alignmask::all_kernels, "Names of all kernels.");
  module.def("launched_kernels", alignmask::launched_kernels,
             "Names of those that ran since the last call.");
  module.def("launch", launch, py::arg("kernel"), py::arg("blocks"), py::arg("threads"),
             py::arg("params"), "Run one kernel.");
  module.def("record", record, py::arg("call"),
             "The launches (kernel, blocks, threads, params) of an op in call().");
  std::vector<std::string> bugs;
  for (const alignmask::PlantedBug& bug : alignmask::kPlantedBugs) bugs.emplace_back(bug.name);
  module.attr("PLANTED_BUGS") = bugs;
  module.def("planted", planted, py::arg("bug"), py::arg("numbers"), "See tests/simt/planted.cuh.");
}
