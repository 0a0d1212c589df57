#include "launch.h"

#include <limits>
#include <stdexcept>

#include "check.h"

namespace alignmask {

unsigned blocks_for(std::int64_t items, std::int64_t items_per_block) {
  const std::int64_t blocks = items / items_per_block + (items % items_per_block != 0);
  if (blocks > std::numeric_limits<std::int32_t>::max())
    throw std::length_error("a grid of " + std::to_string(blocks) + " blocks is larger than CUDA allows");
  return static_cast<unsigned>(blocks);
}

const char* kernel_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float";
    case DType::kFloat64:
      return "double";
    case DType::kFloat16:
      return "Half";
    case DType::kBFloat16:
      return "BFloat16";
    case DType::kInt64:
      return "Int64";
    case DType::kInt32:
      return "int";
    case DType::kUInt8:
    case DType::kBool:
      return "unsigned char";
  }
  return "unknown";
}

}  // namespace alignmask
