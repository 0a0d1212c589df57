#include "check.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <limits>
#include <numeric>
#include <sstream>
#include <utility>

namespace alignmask {

std::string to_string(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

std::string to_string(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kInt64:
      return "int64";
    case DType::kInt32:
      return "int32";
    case DType::kUInt8:
      return "uint8";
    case DType::kBool:
      return "bool";
  }
  return "unknown";
}

std::string to_string(Device device) {
  return device.type == DeviceType::kCPU ? "cpu" : "cuda:" + std::to_string(device.index);
}

std::string shape_string(const TensorView& tensor) {
  std::string text = "(";
  for (int i = 0; i < tensor.dims; ++i) text += (i ? ", " : "") + std::to_string(tensor.shape[i]);
  return text + (tensor.dims == 1 ? ",)" : ")");
}

namespace {

/// a · b, or a number beyond every limit here if that does not fit.
std::int64_t saturating_product(std::int64_t a, std::int64_t b) {
  std::int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<std::int64_t>::max()
                                                : product;
}

/// |stride|, also of the most negative one.
std::uint64_t magnitude(std::int64_t stride) {
  return stride < 0 ? -static_cast<std::uint64_t>(stride) : static_cast<std::uint64_t>(stride);
}

/// Is the distance between a tensor's first and last place in memory less than 2^63 bytes?
bool spans_memory(const TensorView& tensor) {
  std::uint64_t bytes = static_cast<std::uint64_t>(element_bytes(tensor.dtype));
  constexpr std::uint64_t kMost = std::numeric_limits<std::int64_t>::max();
  for (int i = 0; i < tensor.dims; ++i) {
    std::uint64_t reach;
    if (tensor.shape[i] <= 1) continue;
    if (__builtin_mul_overflow(static_cast<std::uint64_t>(tensor.shape[i] - 1),
                               magnitude(tensor.strides[i]), &reach) ||
        __builtin_mul_overflow(reach, static_cast<std::uint64_t>(element_bytes(tensor.dtype)),
                               &reach) ||
        __builtin_add_overflow(bytes, reach, &bytes) || bytes > kMost)
      return false;
  }
  return true;
}

/// What a tensor of which spans_memory() holds covers, in bytes: where it begins, and its steps in
/// memory.
class Footprint {
 public:
  struct Step {
    std::uint64_t count, stride;  ///< size - 1, |stride|
  };

  explicit Footprint(const TensorView& tensor)
      : low(reinterpret_cast<std::uintptr_t>(tensor.data)),
        element_(static_cast<std::uint64_t>(element_bytes(tensor.dtype))) {
    for (int i = 0; i < tensor.dims; ++i) {
      if (tensor.shape[i] <= 1 || tensor.strides[i] == 0) continue;
      const Step step = {static_cast<std::uint64_t>(tensor.shape[i] - 1),
                         magnitude(tensor.strides[i]) * element_};
      if (tensor.strides[i] < 0) low -= step.count * step.stride;
      steps_[size_++] = step;
    }
  }

  const Step* begin() const { return steps_; }
  const Step* end() const { return steps_ + size_; }

  /// Bytes of a block: the dimensions that step by less than `from`.
  std::uint64_t block(std::uint64_t from) const {
    std::uint64_t bytes = element_;
    for (const auto& [count, stride] : *this) bytes += stride < from ? count * stride : 0;
    return bytes;
  }

  std::uintptr_t low;

 private:
  std::uint64_t element_;
  int size_ = 0;
  Step steps_[TensorView::kMaxDims];  // no vector: a call makes dozens of these
};

}  // namespace

// Take the dimensions that step by less than some number of bytes as a block, and the others as
// ways to move it. Blocks only ever move by multiples of g, the greatest common divisor of those
// steps. So if the two blocks are apart modulo g, they always are. Without steps to move by, this
// compares two ranges.
bool may_overlap(const TensorView& a, const TensorView& b) {
  for (const TensorView* tensor : {&a, &b})
    for (int i = 0; i < tensor->dims; ++i)
      if (tensor->shape[i] == 0) return false;
  const Footprint first(a), second(b);
  const auto apart = [&](std::uint64_t from) {
    std::uint64_t g = 0;
    for (const Footprint* footprint : {&first, &second})
      for (const auto& [count, stride] : *footprint)
        if (stride >= from) g = std::gcd(g, stride);
    const std::uint64_t first_bytes = first.block(from), second_bytes = second.block(from);
    if (g == 0)
      return first.low < second.low ? second.low - first.low >= first_bytes
                                    : first.low - second.low >= second_bytes;
    const std::uint64_t distance =  // from the first block's start to the second's next start
        first.low < second.low ? (second.low - first.low) % g
                               : (g - (first.low - second.low) % g) % g;
    return distance >= first_bytes && g - distance >= second_bytes;
  };
  if (apart(std::numeric_limits<std::uint64_t>::max())) return false;
  for (const Footprint* footprint : {&first, &second})
    for (const auto& [count, stride] : *footprint)
      if (apart(stride)) return false;
  return true;
}

void ArgumentCheck::input(const char* name, const TensorView& tensor, const char* letters,
                          std::initializer_list<DType> allowed) {
  check(name, tensor, letters, allowed);
  remember(name, tensor, false);
}

void ArgumentCheck::check(const char* name, const TensorView& tensor, const char* letters,
                          std::initializer_list<DType> allowed) {
  const std::string argument = name;
  if (!tensor.present) fail_type(argument + " is missing");
  if (std::find(allowed.begin(), allowed.end(), tensor.dtype) == allowed.end()) {
    std::string names;
    for (DType dtype : allowed)
      if (names.find(to_string(dtype)) == std::string::npos)
        names += (names.empty() ? "" : ", ") + to_string(dtype);
    fail_type(argument + " must be of dtype " + names + ", got " + to_string(tensor.dtype));
  }
  if (tensor.dims != static_cast<int>(std::strlen(letters))) {
    fail_value(argument + " must have the " + std::to_string(std::strlen(letters)) +
               " dimensions " + letters + ", got " + shape_string(tensor));
  }
  bool empty = false;
  std::int64_t elements = 1;
  for (int i = 0; i < tensor.dims; ++i) {
    if (tensor.shape[i] < 0) fail_value(argument + " has a negative size: " + shape_string(tensor));
    empty = empty || tensor.shape[i] == 0;
    elements = saturating_product(elements, std::max<std::int64_t>(tensor.shape[i], 1));
  }
  if (elements > kMostElements)
    fail_value(argument + " is too large: " + shape_string(tensor) +
               " has more than 2^44 elements" + (empty ? ", but for the sizes of 0" : ""));
  if (!empty && !spans_memory(tensor))
    fail_value(argument + " has strides that lead out of memory");
  if (!tensor.data && !empty) fail_value(argument + " has no memory");
  if (reinterpret_cast<std::uintptr_t>(tensor.data) %
      static_cast<std::uintptr_t>(element_bytes(tensor.dtype)))
    fail_value(argument + " is not aligned to its element size in memory");
  if (!device_source_) {
    device_ = tensor.device;
    device_source_ = name;
  } else if (!(device_ == tensor.device)) {
    fail_value(argument + " is on " + to_string(tensor.device) + ", but " + device_source_ +
               " is on " + to_string(device_));
  }
  for (int i = 0; i < tensor.dims; ++i) {
    const char letter = letters[i];
    const std::int64_t given = tensor.shape[i];
    if (std::isdigit(static_cast<unsigned char>(letter))) {
      if (given != letter - '0')
        fail_value(argument + " (" + letters + ") must have size " + letter + " there, got " +
                   shape_string(tensor));
      continue;
    }
    Size& size = sizes_[static_cast<unsigned char>(letter)];
    if (!size.source) size = {given, name};
    if (size.value != given) {
      fail_value(argument + " (" + letters + ") has " + letter + " = " + std::to_string(given) +
                 " in " + shape_string(tensor) + ", but " + size.source + " has " + letter + " = " +
                 std::to_string(size.value));
    }
  }
}

void ArgumentCheck::output(const char* name, const TensorView& tensor, const char* letters,
                           std::initializer_list<DType> allowed) {
  if (!tensor.present) return;
  check(name, tensor, letters, allowed);
  if (tensor.read_only)
    fail_value(std::string(name) + " is an output, but its memory is read-only");
  for (int i = 0; i < tensor.dims; ++i)
    if (tensor.shape[i] == 0) return;
  remember(name, tensor, true);
  // Sorted by stride, every dimension must step over all that the smaller ones reach.
  int order[TensorView::kMaxDims];
  std::iota(order, order + tensor.dims, 0);
  std::sort(order, order + tensor.dims, [&](int a, int b) {
    return magnitude(tensor.strides[a]) < magnitude(tensor.strides[b]);
  });
  std::uint64_t reach = 0;
  for (int i = 0; i < tensor.dims; ++i) {
    const int dim = order[i];
    if (tensor.shape[dim] == 1) continue;
    if (magnitude(tensor.strides[dim]) <= reach)
      fail_value(std::string(name) +
                 " is an output, but several of its elements share one place in memory");
    reach += static_cast<std::uint64_t>(tensor.shape[dim] - 1) * magnitude(tensor.strides[dim]);
  }
}

void ArgumentCheck::remember(const char* name, const TensorView& tensor, bool is_output) {
  for (const Seen& seen : seen_) {
    if (!(is_output || seen.is_output) || !may_overlap(tensor, *seen.tensor)) continue;
    const bool second = is_output;  // name the output first
    fail_value(std::string(second ? name : seen.name) + " is an output, but it overlaps " +
               (second ? seen.name : name) + " in memory");
  }
  seen_.push_back({name, &tensor, is_output});
}

void ArgumentCheck::product(const char* letters) const {
  std::int64_t product = 1;
  for (const char* letter = letters; *letter; ++letter)
    product = saturating_product(product, std::max<std::int64_t>(size(*letter), 1));
  if (product <= kMostElements) return;
  std::string text;
  for (const char* letter = letters; *letter; ++letter)
    text += (text.empty() ? "" : ", ") + std::string(1, *letter) + " = " +
            std::to_string(size(*letter)) + " (" +
            sizes_[static_cast<unsigned char>(*letter)].source + ")";
  fail_value("the sizes " + text + " multiply to more than 2^44");
}

void ArgumentCheck::in_range(const char* name, const TensorView& tensor, std::int64_t low,
                             std::int64_t high) const {
  if (tensor.device.type != DeviceType::kCPU) return;
  const std::int64_t count =
      tensor.strides[0] == 0 ? std::min<std::int64_t>(tensor.shape[0], 1) : tensor.shape[0];
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t value = int_at(tensor, i * tensor.strides[0]);
    if (value < low || value >= high)
      fail_value(std::string(name) + "[" + std::to_string(i) + "] = " + std::to_string(value) +
                 " is outside [" + std::to_string(low) + ", " + std::to_string(high - 1) + "]");
  }
}

std::string ArgumentCheck::sizes() const {
  std::string text;
  for (char letter = 'A'; letter <= 'Z'; ++letter)
    if (sizes_[static_cast<unsigned char>(letter)].source)
      text += (text.empty() ? "" : ", ") + std::string(1, letter) + " = " +
              std::to_string(size(letter));
  return text;
}

void ArgumentCheck::require_cpu() const {
  if (device_.type != DeviceType::kCPU)
    fail_value("no kernel for device " + to_string(device_) + " in this build");
}

void ArgumentCheck::workspace(const TensorView& tensor, std::int64_t bytes) const {
  if (bytes == 0) return;
  if (!tensor.present)
    fail_type("workspace is missing: " + std::to_string(bytes) + " bytes are needed");
  if (tensor.dtype != DType::kUInt8)
    fail_type("workspace must be of dtype uint8, got " + to_string(tensor.dtype));
  if (tensor.dims != 1 || tensor.shape[0] < bytes || tensor.strides[0] != 1)
    fail_value("workspace must be " + std::to_string(bytes) + " contiguous bytes, got " +
               shape_string(tensor));
  if (!(tensor.device == device_))
    fail_value("workspace is on " + to_string(tensor.device) + ", but " + device_source_ +
               " is on " + to_string(device_));
  if (tensor.read_only) fail_value("workspace is read-only");
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % 16)
    fail_value("workspace is not aligned to 16 bytes");
  for (const Seen& seen : seen_)
    if (may_overlap(tensor, *seen.tensor))
      fail_value("workspace overlaps " + std::string(seen.name) + " in memory");
}

}  // namespace alignmask
