#include "plane/categories.h"

#include <utility>

namespace headrace::plane {

Categories::Categories(std::vector<std::string> texts) : texts_(std::move(texts)) {
  numbers_.reserve(texts_.size());
  for (std::size_t number = 0; number < texts_.size(); ++number) {
    if (!texts_[number].empty()) numbers_[texts_[number]] = static_cast<std::int64_t>(number);
  }
  if (!texts_.empty() && texts_.front().empty()) other_ = 0;
}

std::optional<std::int64_t> Categories::number_of(std::string_view text) const {
  const auto found = numbers_.find(text);
  return found == numbers_.end() ? other_ : found->second;
}

}  // namespace headrace::plane
