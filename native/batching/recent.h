// The last few of a series of numbers.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

namespace headrace::batching {

// Remembers so many, and says what most of them do not exceed.
class Recent {
 public:
  static constexpr std::size_t kRemembered = 64;

  void add(double value) { values_[count_++ % kRemembered] = value; }
  bool is_empty() const { return count_ == 0; }

  // The least of them that at least this share does not exceed.  Not while it is empty.
  double quantile(double share) const {
    std::array<double, kRemembered> sorted = values_;
    const std::size_t count = std::min(count_, kRemembered);
    const auto place = std::min(static_cast<std::size_t>(share * static_cast<double>(count)), count - 1);
    const auto found = sorted.begin() + static_cast<std::ptrdiff_t>(place);
    std::nth_element(sorted.begin(), found, sorted.begin() + static_cast<std::ptrdiff_t>(count));
    return *found;
  }

 private:
  std::array<double, kRemembered> values_{};
  std::size_t count_ = 0;  // all that ever were
};

}  // namespace headrace::batching
