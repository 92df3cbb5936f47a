// Counts durations in buckets whose width grows with the duration: at most 0.8 % of it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace load {

// Nanoseconds.  Adding costs one increment; memory does not grow.
class Histogram {
 public:
  void add(std::int64_t nanoseconds) {
    const auto value = static_cast<std::uint64_t>(std::clamp<std::int64_t>(nanoseconds, 0, kMost));
    ++counts_[index(value)];
    ++count_;
    sum_ += value;
    most_ = std::max(most_, value);
  }

  void add(const Histogram& other) {
    for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
    count_ += other.count_;
    sum_ += other.sum_;
    most_ = std::max(most_, other.most_);
  }

  std::uint64_t count() const { return count_; }
  double mean() const { return count_ == 0 ? 0 : static_cast<double>(sum_) / static_cast<double>(count_); }
  std::uint64_t most() const { return most_; }

  // The duration that a share `q` of all do not exceed; the middle of its bucket.  0 when nothing was added.
  double quantile(double q) const {
    const auto rank = static_cast<std::uint64_t>(q * static_cast<double>(count_));
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i];
      if (seen > rank) return std::min(middle(i), static_cast<double>(most_));
    }
    return static_cast<double>(most_);
  }

 private:
  static constexpr int kBits = 7;  // 128 buckets for each power of two
  static constexpr std::int64_t kMost = (std::int64_t{1} << 42) - 1;  // 73 minutes
  static constexpr std::size_t kSize = (42 - kBits + 1) << kBits;

  static std::size_t index(std::uint64_t value) {
    if (value < (1u << kBits)) return value;
    const int shift = 63 - __builtin_clzll(value) - kBits;
    return (static_cast<std::size_t>(shift) << kBits) + (value >> shift);
  }

  static double middle(std::size_t index) {
    if (index < (2u << kBits)) return static_cast<double>(index);
    const auto shift = (index >> kBits) - 1;
    const auto low = (index - (shift << kBits)) << shift;
    return static_cast<double>(low) + static_cast<double>(std::uint64_t{1} << shift) / 2;
  }

  std::array<std::uint64_t, kSize> counts_{};
  std::uint64_t count_ = 0;
  std::uint64_t sum_ = 0;
  std::uint64_t most_ = 0;
};

}  // namespace load
