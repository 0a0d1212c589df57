#include "tensor_arg.h"

#include <cstring>
#include <string>

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

}  // namespace

TensorArg::TensorArg(const char* op, const char* name, py::handle object)
    : op_(op),
      name_(name),
      buffer_(nullptr, release_buffer),
      managed_(nullptr, release_managed),
      managed_versioned_(nullptr, release_managed) {
  if (object.is_none()) return;
  try {
    if (!read_buffer(object) && !read_exchange_api(object) && !read_torch_attributes(object) &&
        !read_dlpack(object))
      fail_type(std::string("must be a tensor (torch, NumPy or DLPack), got ") +
                Py_TYPE(object.ptr())->tp_name);
  } catch (py::error_already_set& error) {
    refuse<ValueError>(op, name, "does not show its memory", error);
  }
  view_.present = true;
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
  const std::string type =
      format.size() == 2 && std::strchr(kNativeOrder, format[0]) ? format.substr(1) : format;
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
    fail_value("has elements of " + std::to_string(buffer->itemsize) +
               " bytes, which does not fit its format '" + format + "'");
  if (buffer->ndim > TensorView::kMaxDims)
    fail_value("has " + std::to_string(buffer->ndim) + " dimensions, at most 8 are supported");
  std::int64_t shape[TensorView::kMaxDims], strides[TensorView::kMaxDims];
  if (buffer->ndim > 0 && !buffer->shape) fail_value("has no shape");
  for (int i = 0; i < buffer->ndim; ++i) {
    shape[i] = buffer->shape[i];
    if (!buffer->strides) continue;  // contiguous: ctypes' arrays
    if (buffer->strides[i] % buffer->itemsize)
      fail_value("has strides that are not multiples of its element size");
    strides[i] = buffer->strides[i] / buffer->itemsize;
  }
  take_shape(buffer->ndim, shape, buffer->strides ? strides : nullptr);
  view_.data = buffer->buf;
  view_.read_only = buffer->readonly;
  return true;
}

void TensorArg::take_shape(int dims, const std::int64_t* shape, const std::int64_t* strides) {
  if (dims < 0 || (dims > 0 && !shape)) fail_value("has no shape");
  if (dims > TensorView::kMaxDims)
    fail_value("has " + std::to_string(dims) + " dimensions, at most 8 are supported");
  view_.dims = dims;
  std::uint64_t contiguous = 1;  // unsigned: sizes may be anything until the op has checked them
  for (int i = dims - 1; i >= 0; --i) {
    view_.shape[i] = shape[i];
    // The stride of a dimension of size 1 may be anything, too, and means nothing.
    view_.strides[i] =
        strides && shape[i] != 1 ? strides[i] : static_cast<std::int64_t>(contiguous);
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
