// The last few of a series of numbers.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

namespace headrace::batching {

// Remembers so many, and says what most of them do not exceed.  Numbers only: NaN is none.
class Recent {
 public:
  static constexpr std::size_t kRemembered = 64;

  // In place of the oldest, when there are so many.
  void add(double value) {
    auto end = sorted_.begin() + static_cast<std::ptrdiff_t>(size());
    double& oldest = values_[count_ % kRemembered];
    if (count_ >= kRemembered) {
      const auto gone = std::lower_bound(sorted_.begin(), end, oldest);
      std::move(gone + 1, end, gone);
      --end;
    }
    const auto place = std::upper_bound(sorted_.begin(), end, value);
    std::move_backward(place, end, end + 1);
    *place = oldest = value;
    ++count_;
  }
  bool is_empty() const { return count_ == 0; }

  // The least of them that at least this share does not exceed.  Not while it is empty.
  double quantile(double share) const {
    return sorted_[std::min(static_cast<std::size_t>(share * static_cast<double>(size())), size() - 1)];
  }

 private:
  std::size_t size() const { return std::min(count_, kRemembered); }

  std::array<double, kRemembered> values_{};  // the next one takes the place of the oldest
  std::array<double, kRemembered> sorted_{};
  std::size_t count_ = 0;  // all that ever were
};

}  // namespace headrace::batching
