// The instances of a batch, which lie flat, image by image.
#pragma once

#include <cstdint>
#include <vector>

#include "strided_copy.h"

namespace alignmask::ALIGNMASK_ISA {

struct InstancesOfImages {
  std::vector<std::int64_t> first;     ///< [images + 1]: where an image's instances begin in `instance`
  std::vector<std::int64_t> instance;  ///< [G]: indices, ascending within an image

  /// `owner`: an image index per instance, all in range.
  InstancesOfImages(const TensorView& owner, std::int64_t images)
      : first(static_cast<std::size_t>(images) + 1),
        instance(static_cast<std::size_t>(owner.shape[0])) {
    const auto image = [&](std::int64_t g) { return static_cast<std::size_t>(int_at(owner, g * owner.strides[0])); };
    for (std::int64_t g = 0; g < owner.shape[0]; ++g) ++first[image(g) + 1];
    for (std::size_t b = 1; b < first.size(); ++b) first[b] += first[b - 1];
    std::vector<std::int64_t> next(first);
    for (std::int64_t g = 0; g < owner.shape[0]; ++g) instance[static_cast<std::size_t>(next[image(g)]++)] = g;
  }

  std::int64_t count(std::int64_t image) const {
    return first[static_cast<std::size_t>(image) + 1] - first[static_cast<std::size_t>(image)];
  }
  const std::int64_t* of(std::int64_t image) const { return instance.data() + first[static_cast<std::size_t>(image)]; }
};

}  // namespace alignmask::ALIGNMASK_ISA
