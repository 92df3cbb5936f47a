// The texts that numbers stand for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace headrace::plane {

class Categories {
 public:
  // By their numbers from 0.  Of two that are alike the last counts.  If the first is empty, it stands for every text
  // that is not here; another empty one stands for nothing.
  explicit Categories(std::vector<std::string> texts);
  Categories(const Categories&) = delete;
  Categories& operator=(const Categories&) = delete;

  std::optional<std::int64_t> number_of(std::string_view text) const;

 private:
  const std::vector<std::string> texts_;
  std::unordered_map<std::string_view, std::int64_t> numbers_;
  std::optional<std::int64_t> other_;
};

}  // namespace headrace::plane
