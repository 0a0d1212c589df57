#include "tensor_arg.h"

#include <cstring>
#include <string>
#include <vector>

#include "common/check.h"
#include "scalar_arg.h"

namespace py = pybind11;

namespace alignmask {

namespace {

void release_buffer(Py_buffer* buffer) {
  PyBuffer_Release(buffer);
  delete buffer;
}

template <class Managed>
void release_managed(Managed* managed) {
  if (managed->deleter) managed->deleter(managed);
}

/// Is it a torch.Tensor? (If nobody has imported torch, it is none.)
bool is_torch_tensor(py::handle object) {
  static py::handle tensor_type;
  if (!tensor_type) {
    const auto modules = py::reinterpret_borrow<py::dict>(PyImport_GetModuleDict());
    if (!modules.contains("torch") || !py::hasattr(modules["torch"], "Tensor")) return false;
    tensor_type = py::object(modules["torch"].attr("Tensor")).release();
  }
  return PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(tensor_type.ptr()));
}

/// The exchange API of an object's type, or null. Types that have one are few, and so are torch's, which have none
/// before 2.11: they are looked up once and kept alive.
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
    api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api->header.version.major != 1) api = nullptr;
  }
  if (!api && !is_torch_tensor(object)) return nullptr;
  Py_INCREF(reinterpret_cast<PyObject*>(type));
  known.emplace_back(type, api);
  return api;
}

/// torch.dtype -> DType, without linking against torch.
bool torch_dtype(py::handle dtype, DType* out) {
  static const std::vector<std::pair<py::handle, DType>> known = [] {
    const py::module_ torch = py::module_::import("torch");
    std::vector<std::pair<py::handle, DType>> pairs;
    for (DType d : {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16, DType::kInt64, DType::kInt32,
                    DType::kUInt8, DType::kBool})
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

/// What a torch tensor is asked, as Python strings that are made once: that takes longer than the answers.
struct TorchNames {
  py::str dtype = "dtype", shape = "shape", stride = "stride", device = "device", type = "type", index = "index",
          data_ptr = "data_ptr";
};

py::object call(py::handle object, const py::str& method) {
  PyObject* const result = PyObject_CallMethodNoArgs(object.ptr(), method.ptr());
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

std::vector<std::int64_t> integers(const py::tuple& tuple) {
  std::vector<std::int64_t> values(tuple.size());
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = py::handle(tuple[i]).cast<std::int64_t>();
  return values;
}

}  // namespace

TensorArg::TensorArg(const char* op, const char* name, py::handle object)
    : op_(op),
      name_(name),
      buffer_(nullptr, release_buffer),
      managed_(nullptr, release_managed),
      managed_versioned_(nullptr, release_managed) {
  if (object.is_none()) return;
  try {
    if (!read_buffer(object) && !read_exchange_api(object) && !read_torch_attributes(object) && !read_dlpack(object))
      fail_type(std::string("must be a tensor (torch, NumPy or DLPack), got ") + Py_TYPE(object.ptr())->tp_name);
  } catch (py::error_already_set& error) {
    refuse<ValueError>(op, name, "does not show its memory", error);
  }
  view_.present = true;
}

bool TensorArg::read_exchange_api(py::handle object) {
  const DLPackExchangeAPI* api = exchange_api(object);
  if (!api || !api->dltensor_from_py_object_no_sync) return false;
  DLTensor tensor;
  if (api->dltensor_from_py_object_no_sync(object.ptr(), &tensor)) throw py::error_already_set();
  take(tensor);
  return true;
}

/// Older versions of torch have no exchange API (2.11 does), and their __dlpack__ is slow and refuses tensors that
/// require gradients.
bool TensorArg::read_torch_attributes(py::handle object) {
  if (!is_torch_tensor(object)) return false;
  static const TorchNames& names = *new TorchNames;
  const py::object dtype = object.attr(names.dtype);
  if (!torch_dtype(dtype, &view_.dtype)) fail_value("has the unsupported dtype " + py::str(dtype).cast<std::string>());
  const auto sizes = integers(object.attr(names.shape)), steps = integers(call(object, names.stride));
  take_shape(static_cast<int>(sizes.size()), sizes.data(), steps.data());
  const py::object device = object.attr(names.device), type = device.attr(names.type);
  const auto is = [&](const char* name) { return PyUnicode_CompareWithASCIIString(type.ptr(), name) == 0; };
  if (!PyUnicode_Check(type.ptr())) fail_value("is on no device");
  if (is("cuda")) {
    view_.device = {DeviceType::kCUDA, device.attr(names.index).cast<int>()};
  } else if (!is("cpu")) {
    fail_value("is on the unsupported device " + type.cast<std::string>());
  }
  view_.data = reinterpret_cast<void*>(call(object, names.data_ptr).cast<std::uintptr_t>());
  return true;
}

bool TensorArg::read_buffer(py::handle object) {
  if (!PyObject_CheckBuffer(object.ptr())) return false;
  auto* buffer = new Py_buffer();
  if (PyObject_GetBuffer(object.ptr(), buffer, PyBUF_STRIDED_RO | PyBUF_FORMAT)) {
    delete buffer;
    PyErr_Clear();  // e.g. a dtype that has no format; DLPack may know it
    return false;
  }
  buffer_.reset(buffer);
  const std::string format = buffer->format ? buffer->format : "B";
  constexpr const char* kNativeOrder = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? "@=<" : "@=>";
  const std::string type = format.size() == 2 && std::strchr(kNativeOrder, format[0]) ? format.substr(1) : format;
  const char code = type.size() == 1 ? type[0] : '\0';
  if (code == 'f') {
    view_.dtype = DType::kFloat32;
  } else if (code == 'd') {
    view_.dtype = DType::kFloat64;
  } else if (code == 'e') {
    view_.dtype = DType::kFloat16;
  } else if (code == '?') {
    view_.dtype = DType::kBool;
  } else if (code == 'B') {
    view_.dtype = DType::kUInt8;
  } else if (code && std::strchr("ilqn", code)) {
    view_.dtype = buffer->itemsize == 8 ? DType::kInt64 : DType::kInt32;
  } else {
    fail_value("has the unsupported format '" + format + "'");
  }
  if (buffer->itemsize != element_bytes(view_.dtype))
    fail_value("has elements of " + std::to_string(buffer->itemsize) + " bytes, which does not fit its format '" +
               format + "'");
  if (buffer->ndim > TensorView::kMaxDims)
    fail_value("has " + std::to_string(buffer->ndim) + " dimensions, at most 8 are supported");
  std::int64_t shape[TensorView::kMaxDims], strides[TensorView::kMaxDims];
  if (buffer->ndim > 0 && !buffer->shape) fail_value("has no shape");
  for (int i = 0; i < buffer->ndim; ++i) {
    shape[i] = buffer->shape[i];
    if (!buffer->strides) continue;  // contiguous: ctypes' arrays
    if (buffer->strides[i] % buffer->itemsize) fail_value("has strides that are no multiple of its element size");
    strides[i] = buffer->strides[i] / buffer->itemsize;
  }
  take_shape(buffer->ndim, shape, buffer->strides ? strides : nullptr);
  view_.data = buffer->buf;
  view_.read_only = buffer->readonly;
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
    managed_versioned_.reset(
        static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned")));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");  // now it is ours to delete
    const auto& version = managed_versioned_->version;
    if (version.major != 1)
      fail_value("speaks version " + std::to_string(version.major) + " of DLPack; versions 0 and 1 are supported");
    view_.read_only = managed_versioned_->flags & kDLPackReadOnly;
    take(managed_versioned_->dl_tensor);
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    managed_.reset(static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor")));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");  // likewise
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

void TensorArg::take_shape(int dims, const std::int64_t* shape, const std::int64_t* strides) {
  if (dims < 0 || (dims > 0 && !shape)) fail_value("has no shape");
  if (dims > TensorView::kMaxDims) fail_value("has " + std::to_string(dims) + " dimensions, at most 8 are supported");
  view_.dims = dims;
  std::uint64_t contiguous = 1;  // unsigned: sizes may be anything until the op has checked them
  for (int i = dims - 1; i >= 0; --i) {
    view_.shape[i] = shape[i];
    // The stride of a dimension of size 1 may be anything, too, and means nothing.
    view_.strides[i] = strides && shape[i] != 1 ? strides[i] : static_cast<std::int64_t>(contiguous);
    contiguous *= static_cast<std::uint64_t>(shape[i]);
  }
}

void TensorArg::fail_type(const std::string& message) const {
  throw TypeError(std::string(op_) + ": " + name_ + " " + message);
}
void TensorArg::fail_value(const std::string& message) const {
  throw ValueError(std::string(op_) + ": " + name_ + " " + message);
}

}  // namespace alignmask
