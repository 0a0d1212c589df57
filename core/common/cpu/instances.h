// The instances of a batch, which lie flat, image by image.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parallel_for.h"
#include "strided_copy.h"

namespace alignmask::ALIGNMASK_ISA {

class InstancesOfImages {
 public:
  /// `owner`: an image index per instance, all in range.
  InstancesOfImages(const TensorView& owner, std::int64_t images)
      : memory_(static_cast<std::size_t>(2 * (images + 1) + owner.shape[0]) * sizeof(std::int64_t)),
        first_(static_cast<std::int64_t*>(memory_.data())),
        instance_(first_ + images + 1) {
    const auto image = [&](std::int64_t g) { return int_at(owner, g * owner.strides[0]); };
    std::fill_n(first_, images + 1, std::int64_t{0});
    for (std::int64_t g = 0; g < owner.shape[0]; ++g) ++first_[image(g) + 1];
    for (std::int64_t b = 0; b < images; ++b) first_[b + 1] += first_[b];
    std::int64_t* next = instance_ + owner.shape[0];
    std::copy(first_, first_ + images, next);
    for (std::int64_t g = 0; g < owner.shape[0]; ++g) instance_[next[image(g)]++] = g;
  }

  std::int64_t first(std::int64_t image) const { return first_[image]; }
  std::int64_t count(std::int64_t image) const { return first_[image + 1] - first_[image]; }
  /// Indices of the image's instances, ascending.
  const std::int64_t* of(std::int64_t image) const { return instance_ + first_[image]; }

 private:
  Scratch memory_;
  std::int64_t* first_;     // [images + 1]: where an image's instances begin in `instance`
  std::int64_t* instance_;  // [G]
};

}  // namespace alignmask::ALIGNMASK_ISA
