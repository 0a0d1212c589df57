#include "scalar_arg.h"

#include <limits>
#include <string>

#include "common/check.h"

namespace py = pybind11;

namespace alignmask {

namespace {

constexpr std::size_t kMostInts = 1 << 16;

template <class Error>
[[noreturn]] void fail(const char* op, const char* name, const std::string& message) {
  throw Error(std::string(op) + ": " + name + " " + message);
}

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

/// `object` as an integer of 64 bits.
std::int64_t integer(const char* op, const char* name, py::handle object) {
  if (!PyIndex_Check(object.ptr()))
    fail<TypeError>(op, name, "must be an integer, got " + type_name(object));
  try {
    const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
    if (!index) throw py::error_already_set();
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
    if (PyErr_Occurred()) throw py::error_already_set();
    if (overflow) fail<ValueError>(op, name, "must fit in 64 bits, got a larger integer");
    return value;
  } catch (py::error_already_set& error) {
    refuse<TypeError>(op, name, "is not an integer", error);
  }
}

}  // namespace

int int_arg(const char* op, const char* name, py::handle object) {
  const std::int64_t value = integer(op, name, object);
  if (value < std::numeric_limits<int>::min() || value > std::numeric_limits<int>::max())
    fail<ValueError>(op, name, "must fit in 32 bits, got " + std::to_string(value));
  return static_cast<int>(value);
}

std::int64_t long_arg(const char* op, const char* name, py::handle object) {
  return integer(op, name, object);
}

void* stream_arg(const char* op, const char* name, py::handle object) {
  return reinterpret_cast<void*>(static_cast<std::uintptr_t>(integer(op, name, object)));
}

double number_arg(const char* op, const char* name, py::handle object) {
  if (PyFloat_CheckExact(object.ptr())) return PyFloat_AS_DOUBLE(object.ptr());
  const PyNumberMethods* number = Py_TYPE(object.ptr())->tp_as_number;
  if (!number || !(number->nb_float || number->nb_index))
    fail<TypeError>(op, name, "must be a number, got " + type_name(object));
  const double value = PyFloat_AsDouble(object.ptr());
  if (!PyErr_Occurred()) return value;
  py::error_already_set error;
  if (error.matches(PyExc_OverflowError)) refuse<ValueError>(op, name, "is too large", error);
  refuse<TypeError>(op, name, "is not a number", error);
}

bool bool_arg(const char* op, const char* name, py::handle object) {
  if (!PyBool_Check(object.ptr()))
    fail<TypeError>(op, name, "must be True or False, got " + type_name(object));
  return object.ptr() == Py_True;
}

std::vector<std::int64_t> ints_arg(const char* op, const char* name, py::handle object) {
  if (!PySequence_Check(object.ptr()) || PyUnicode_Check(object.ptr()) ||
      PyBytes_Check(object.ptr()))
    fail<TypeError>(op, name, "must be a list of integers, got " + type_name(object));
  try {
    // grows as items arrive, and not without end: a length may be a lie
    std::vector<std::int64_t> values;
    for (const py::handle item : py::reinterpret_borrow<py::object>(object)) {
      if (values.size() == kMostInts)
        fail<ValueError>(op, name, "holds more than " + std::to_string(kMostInts) + " integers");
      values.push_back(
          integer(op, (name + ("[" + std::to_string(values.size()) + "]")).c_str(), item));
    }
    return values;
  } catch (py::error_already_set& error) {
    refuse<TypeError>(op, name, "must be a list of integers", error);
  }
}

}  // namespace alignmask
