// Functions of the core as functions of Python. A binding lists the arguments once, in the order in
// which Python passes them, each with the member of the contract struct that it fills; defaults are
// those of the struct.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "ops.h"
#include "scalar_arg.h"
#include "tensor_arg.h"

namespace alignmask {

/// What an argument can do in a call; each kind does some of it. The steps are taken in this order,
/// each for all arguments, since reading anything but a tensor may run Python code, which might
/// change a tensor's memory.
template <class Args>
struct Argument {
  const char* name;  ///< in Python

  void choose_form(pybind11::handle, Args&) const {}
  void read_scalar(pybind11::handle, Args&) const {}
  void read_tensor(pybind11::handle, Args&, std::optional<TensorArg>&) const {}
  void borrow_workspace(pybind11::handle, Args&, std::int64_t (*)(const Args&),
                        std::optional<WorkspaceArg>&) const {}

  pybind11::arg in_python() const { return pybind11::arg(name); }
};

template <class Args>
struct Tensor : Argument<Args> {
  TensorView Args::* member;
  const char* (*name_in_errors)(const Args&);  ///< null: `name`

  void read_tensor(pybind11::handle object, Args& args, std::optional<TensorArg>& memory) const {
    args.*member =
        memory.emplace(args.op(), name_in_errors ? name_in_errors(args) : this->name, object);
  }
};

/// One that may be left out.
template <class Args>
struct OptionalTensor : Tensor<Args> {
  pybind11::arg_v in_python() const { return {this->name, pybind11::none()}; }
};

template <class Args, class Member>
struct Scalar : Argument<Args> {
  Member Args::* member;

  void read_scalar(pybind11::handle object, Args& args) const {
    read_arg(args.op(), this->name, object, args.*member);
  }
  pybind11::arg_v in_python() const { return {this->name, Args{}.*member}; }
};

/// The CUDA stream, an integer in Python.
template <class Args>
struct Stream : Scalar<Args, void*> {
  pybind11::arg_v in_python() const { return {this->name, 0}; }
};

template <class Args>
struct Workspace : Argument<Args> {
  void borrow_workspace(pybind11::handle object, Args& args, std::int64_t (*bytes)(const Args&),
                        std::optional<WorkspaceArg>& memory) const {
    args.workspace = memory.emplace(args.op(), object, [&] { return bytes(args); });
  }
  pybind11::arg_v in_python() const { return {this->name, pybind11::none()}; }
};

template <class Args>
Tensor<Args> tensor(const char* name, TensorView Args::* member) {
  return {{name}, member, nullptr};
}
/// `name_in_errors`: what the caller of an op knows the argument as.
template <class Args>
Tensor<Args> tensor(const char* name, TensorView Args::* member,
                    const char* (*name_in_errors)(const Args&)) {
  return {{name}, member, name_in_errors};
}
template <class Args>
OptionalTensor<Args> optional_tensor(const char* name, TensorView Args::* member) {
  return {tensor(name, member)};
}
template <class Args, class Member>
Scalar<Args, Member> scalar(const char* name, Member Args::* member) {
  return {{name}, member};
}
template <class Args>
Stream<Args> stream(const char* name, void* Args::* member) {
  return {{{name}, member}};
}
template <class Args>
Workspace<Args> workspace(const char* name, TensorView Args::*) {
  return {{name}};
}

/// The arguments of one call, and the memory of Python that they borrow.
template <class Args, class... Arguments>
class OpCall {
 public:
  using Objects = std::array<pybind11::handle, sizeof...(Arguments)>;

  OpCall(const std::tuple<Arguments...>& arguments, const Objects& objects)
      : arguments_(arguments),
        objects_(objects) {
    each([&](const auto& argument, std::size_t i) { argument.choose_form(objects_[i], args); });
    each([&](const auto& argument, std::size_t i) { argument.read_scalar(objects_[i], args); });
    each([&](const auto& argument, std::size_t i) {
      argument.read_tensor(objects_[i], args, memory_[i]);
    });
  }

  void borrow_workspace(std::int64_t (*bytes)(const Args&)) {
    each([&](const auto& argument, std::size_t i) {
      argument.borrow_workspace(objects_[i], args, bytes, workspace_);
    });
  }

  Args args;

 private:
  template <class Step>
  void each(const Step& step) {
    std::size_t i = 0;
    std::apply([&](const auto&... argument) { (step(argument, i++), ...); }, arguments_);
  }

  const std::tuple<Arguments...>& arguments_;
  const Objects objects_;  // a copy: the list that a call is made from ends with the constructor
  std::array<std::optional<TensorArg>, sizeof...(Arguments)> memory_;
  std::optional<WorkspaceArg> workspace_;
};

template <class>
using Handle = pybind11::handle;

/// Adds a function that needs no workspace.
template <class Args, class... Arguments>
void def_op(pybind11::module_& module, const char* name, void (*run)(const Args&), const char* doc,
            const Arguments&... arguments) {
  const auto function = [run, list = std::tuple(arguments...)](Handle<Arguments>... objects) {
    OpCall<Args, Arguments...> call(list, {objects...});
    without_gil(call.args.op(), [&] { run(call.args); });
  };
  module.def(name, function, doc, arguments.in_python()...);
}

/// Adds a function that works in a workspace of bytes(arguments), and <name>_workspace, which
/// returns that number.
template <class Args, class... Arguments>
void def_op(pybind11::module_& module, const char* name, void (*run)(const Args&),
            std::int64_t (*bytes)(const Args&), const std::string& doc,
            const Arguments&... arguments) {
  const auto function = [run, bytes,
                         list = std::tuple(arguments...)](Handle<Arguments>... objects) {
    OpCall<Args, Arguments...> call(list, {objects...});
    call.borrow_workspace(bytes);
    without_gil(call.args.op(), [&] { run(call.args); });
  };
  const std::string workspace_name = std::string(name) + "_workspace";
  const std::string about_workspace = doc + " workspace: as many bytes as " + workspace_name +
                                      " says, or a function that returns the number it is given.";
  module.def(name, function, about_workspace.c_str(), arguments.in_python()...);
  const auto workspace_bytes = [bytes,
                                list = std::tuple(arguments...)](Handle<Arguments>... objects) {
    return bytes(OpCall<Args, Arguments...>(list, {objects...}).args);
  };
  const std::string about = std::string("Bytes of workspace that ") + name +
                            " needs for these arguments; none on the CPU.";
  module.def(workspace_name.c_str(), workspace_bytes, about.c_str(), arguments.in_python()...);
}

}  // namespace alignmask
