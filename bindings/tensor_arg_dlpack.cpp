// Tensors by DLPack: its exchange API, which needs no capsule, and its capsules.
#include <string>
#include <utility>
#include <vector>

#include "tensor_arg.h"

namespace py = pybind11;

namespace alignmask {

namespace {

/// The exchange API of an object's type, or null. Types that have one are few, and so are torch's,
/// which have none before 2.11: they are looked up once and kept alive.
const DLPackExchangeAPI* exchange_api(py::handle object) {
  PyTypeObject* const type = Py_TYPE(object.ptr());
  static std::vector<std::pair<PyTypeObject*, const DLPackExchangeAPI*>> known;
  for (const auto& [seen, api] : known)
    if (seen == type) return api;
  const DLPackExchangeAPI* api = nullptr;
  const auto capsule = py::reinterpret_steal<py::object>(
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
  if (!capsule) {
    PyErr_Clear();
  } else if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
    api = static_cast<const DLPackExchangeAPI*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api->header.version.major != 1) api = nullptr;
  }
  if (!api && !is_torch_tensor(object)) return nullptr;
  Py_INCREF(reinterpret_cast<PyObject*>(type));
  known.emplace_back(type, api);
  return api;
}

}  // namespace

bool TensorArg::read_exchange_api(py::handle object) {
  const DLPackExchangeAPI* api = exchange_api(object);
  if (!api || !api->dltensor_from_py_object_no_sync) return false;
  DLTensor tensor;
  if (api->dltensor_from_py_object_no_sync(object.ptr(), &tensor)) throw py::error_already_set();
  take(tensor);
  return true;
}

bool TensorArg::read_dlpack(py::handle object) {
  if (!py::hasattr(object, "__dlpack__")) return false;
  py::object capsule;
  try {
    capsule = object.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 3));
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    capsule = object.attr("__dlpack__")();  // an exporter from before version 1
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    managed_versioned_.reset(static_cast<DLManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned")));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");  // now it is ours to delete
    const auto& version = managed_versioned_->version;
    if (version.major != 1)
      fail_value("speaks version " + std::to_string(version.major) +
                 " of DLPack; versions 0 and 1 are supported");
    view_.read_only = managed_versioned_->flags & kDLPackReadOnly;
    take(managed_versioned_->dl_tensor);
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    managed_.reset(static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor")));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");  // as above
    take(managed_->dl_tensor);
  } else {
    fail_type("returned no DLPack capsule, or one that has been used");
  }
  return true;
}

void TensorArg::take(const DLTensor& tensor) {
  const DLDataType dtype = tensor.dtype;
  const auto is = [&](DLDataTypeCode code, int bits) {
    return dtype.lanes == 1 && dtype.code == code && dtype.bits == bits;
  };
  if (is(kDLFloat, 32)) {
    view_.dtype = DType::kFloat32;
  } else if (is(kDLFloat, 64)) {
    view_.dtype = DType::kFloat64;
  } else if (is(kDLFloat, 16)) {
    view_.dtype = DType::kFloat16;
  } else if (is(kDLBfloat, 16)) {
    view_.dtype = DType::kBFloat16;
  } else if (is(kDLInt, 64)) {
    view_.dtype = DType::kInt64;
  } else if (is(kDLInt, 32)) {
    view_.dtype = DType::kInt32;
  } else if (is(kDLUInt, 8)) {
    view_.dtype = DType::kUInt8;
  } else if (is(kDLBool, 8)) {
    view_.dtype = DType::kBool;
  } else {
    fail_value("has an unsupported dtype (DLPack code " + std::to_string(dtype.code) + ", " +
               std::to_string(dtype.bits) + " bits)");
  }
  const std::int32_t device = tensor.device.device_type;
  if (device == kDLCUDA || device == kDLCUDAManaged) {
    view_.device = {DeviceType::kCUDA, tensor.device.device_id};
  } else if (device != kDLCPU && device != kDLCUDAHost) {
    fail_value("is on an unsupported device (DLPack type " + std::to_string(device) + ")");
  }
  take_shape(tensor.ndim, tensor.shape, tensor.strides);
  if (tensor.data) view_.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
}

}  // namespace alignmask
