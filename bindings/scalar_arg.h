// Numbers, flags and lists from Python, with errors that name op and argument. Bindings read them
// before any tensor: reading them may run Python code, which might change a tensor whose memory is
// already borrowed.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace alignmask {

/// An integer (whatever has __index__). TypeError if it is not one, ValueError if it does not fit
/// in 32 bits.
int int_arg(const char* op, const char* name, pybind11::handle object);

/// An integer (whatever has __index__). TypeError if it is not one, ValueError if it does not fit
/// in 64 bits.
std::int64_t long_arg(const char* op, const char* name, pybind11::handle object);

/// A CUDA stream: its address, an integer; 0 is the default stream. TypeError or ValueError as
/// above.
void* stream_arg(const char* op, const char* name, pybind11::handle object);

/// A number (whatever has __float__ or __index__), else TypeError; ValueError if it is beyond
/// double precision.
double number_arg(const char* op, const char* name, pybind11::handle object);

/// True or False, else TypeError.
bool bool_arg(const char* op, const char* name, pybind11::handle object);

/// A sequence of integers, else TypeError; ValueError if one does not fit in 64 bits, or if there
/// are very many.
std::vector<std::int64_t> ints_arg(const char* op, const char* name, pybind11::handle object);

// By the type of what is filled.
inline void read_arg(const char* op, const char* name, pybind11::handle object, int& to) {
  to = int_arg(op, name, object);
}
inline void read_arg(const char* op, const char* name, pybind11::handle object, std::int64_t& to) {
  to = long_arg(op, name, object);
}
inline void read_arg(const char* op, const char* name, pybind11::handle object, double& to) {
  to = number_arg(op, name, object);
}
inline void read_arg(const char* op, const char* name, pybind11::handle object, bool& to) {
  to = bool_arg(op, name, object);
}
inline void read_arg(const char* op, const char* name, pybind11::handle object, void*& to) {
  to = stream_arg(op, name, object);
}

/// Turns the Python exception that is being handled into an `Error` of op and argument, unless it
/// is not one of Python's Exceptions: an interrupt must get through.
template <class Error>
[[noreturn]] void refuse(const char* op, const char* name, const std::string& what,
                         pybind11::error_already_set& error) {
  if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw error;
  throw Error(std::string(op) + ": " + name + " " + what + ": " + error.what());
}

}  // namespace alignmask
