// The only class that reads a Python tensor: torch tensors, NumPy arrays and whatever speaks the
// buffer protocol or DLPack, in a file each. No copies.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>

#include "common/tensor_view.h"
#include "dlpack.h"

namespace alignmask {

/// Is it a torch.Tensor? (Not if torch has not been imported.)
bool is_torch_tensor(pybind11::handle object);

/// Borrows the memory of a Python tensor while it lives; construct and destroy it with the GIL
/// held.
class TensorArg {
 public:
  /// Throws TypeError if `object` is not a tensor, ValueError if its data type, device or rank is
  /// not supported or it does not show its memory; both name `op` and `name`. None gives an absent
  /// view. What a torch tensor, a buffer or a DLPack capsule then says about its memory is
  /// believed.
  TensorArg(const char* op, const char* name, pybind11::handle object);
  TensorArg(const TensorArg&) = delete;
  TensorArg& operator=(const TensorArg&) = delete;

  operator const TensorView&() const { return view_; }

 private:
  bool read_exchange_api(pybind11::handle object);
  bool read_torch_attributes(pybind11::handle object);
  bool read_buffer(pybind11::handle object);
  bool read_dlpack(pybind11::handle object);
  void take(const DLTensor& tensor);
  void take_shape(int dims, const std::int64_t* shape, const std::int64_t* strides);
  [[noreturn]] void fail_type(const std::string& message) const;
  [[noreturn]] void fail_value(const std::string& message) const;

  const char* op_;
  const char* name_;
  TensorView view_;
  std::unique_ptr<Py_buffer, void (*)(Py_buffer*)> buffer_;
  std::unique_ptr<DLManagedTensor, void (*)(DLManagedTensor*)> managed_;
  std::unique_ptr<DLManagedTensorVersioned, void (*)(DLManagedTensorVersioned*)> managed_versioned_;
};

/// Memory for a kernel's temporaries: a tensor or, so that a call need not be made twice, a
/// function that returns one. The function gets the number of bytes, and is not called for none.
/// Tensors that were read before must not change their memory meanwhile.
class WorkspaceArg {
 public:
  template <class Bytes>
  WorkspaceArg(const char* op, pybind11::handle object, const Bytes& wanted)
      : owner_(PyCallable_Check(object.ptr())
                   ? lend(object, wanted())
                   : pybind11::reinterpret_borrow<pybind11::object>(object)),
        tensor_(op, "workspace", owner_) {}

  operator const TensorView&() const { return tensor_; }

 private:
  static pybind11::object lend(pybind11::handle lender, std::int64_t bytes) {
    return bytes ? lender(bytes) : pybind11::none();
  }

  pybind11::object owner_;
  TensorArg tensor_;
};

}  // namespace alignmask
