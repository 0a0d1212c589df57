// Tensors of torch by their attributes, without linking against torch.
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "tensor_arg.h"

namespace py = pybind11;

namespace alignmask {

bool is_torch_tensor(py::handle object) {
  static py::handle tensor_type;
  if (!tensor_type) {
    const auto modules = py::reinterpret_borrow<py::dict>(PyImport_GetModuleDict());
    if (!modules.contains("torch") || !py::hasattr(modules["torch"], "Tensor")) return false;
    tensor_type = py::object(modules["torch"].attr("Tensor")).release();
  }
  return PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(tensor_type.ptr()));
}

namespace {

/// torch.dtype -> DType, without linking against torch.
bool torch_dtype(py::handle dtype, DType* out) {
  static const std::vector<std::pair<py::handle, DType>> known = [] {
    const py::module_ torch = py::module_::import("torch");
    std::vector<std::pair<py::handle, DType>> pairs;
    for (DType d : {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16,
                    DType::kInt64, DType::kInt32, DType::kUInt8, DType::kBool})
      pairs.emplace_back(py::object(torch.attr(to_string(d).c_str())).release(), d);
    return pairs;
  }();
  for (const auto& [object, d] : known) {
    if (object.is(dtype)) {
      *out = d;
      return true;
    }
  }
  return false;
}

/// What a torch tensor is asked, as Python strings that are made once: that takes longer than the
/// answers.
struct TorchNames {
  py::str dtype = "dtype", shape = "shape", stride = "stride", device = "device", type = "type",
          index = "index", data_ptr = "data_ptr";
};

py::object call(py::handle object, const py::str& method) {
  PyObject* const result = PyObject_CallMethodNoArgs(object.ptr(), method.ptr());
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

std::vector<std::int64_t> integers(const py::tuple& tuple) {
  std::vector<std::int64_t> values(tuple.size());
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = py::handle(tuple[i]).cast<std::int64_t>();
  return values;
}

}  // namespace

/// Older versions of torch have no exchange API (2.11 does), and their __dlpack__ is slow and
/// refuses tensors that require gradients.
bool TensorArg::read_torch_attributes(py::handle object) {
  if (!is_torch_tensor(object)) return false;
  static const TorchNames& names = *new TorchNames;
  const py::object dtype = object.attr(names.dtype);
  if (!torch_dtype(dtype, &view_.dtype))
    fail_value("has the unsupported dtype " + py::str(dtype).cast<std::string>());
  const auto sizes = integers(object.attr(names.shape)),
             steps = integers(call(object, names.stride));
  take_shape(static_cast<int>(sizes.size()), sizes.data(), steps.data());
  const py::object device = object.attr(names.device), type = device.attr(names.type);
  const auto is = [&](const char* name) {
    return PyUnicode_CompareWithASCIIString(type.ptr(), name) == 0;
  };
  if (!PyUnicode_Check(type.ptr())) fail_value("is on no device");
  if (is("cuda")) {
    view_.device = {DeviceType::kCUDA, device.attr(names.index).cast<int>()};
  } else if (!is("cpu")) {
    fail_value("is on the unsupported device " + type.cast<std::string>());
  }
  view_.data = reinterpret_cast<void*>(call(object, names.data_ptr).cast<std::uintptr_t>());
  return true;
}

}  // namespace alignmask
