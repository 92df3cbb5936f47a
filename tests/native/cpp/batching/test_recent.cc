// What most of the last few numbers do not exceed.
#include <doctest/doctest.h>

#include <algorithm>
#include <deque>
#include <random>
#include <vector>

#include "batching/recent.h"

namespace headrace::batching {

TEST_CASE("a quantile is that of the last few numbers, however many came before and however often one comes") {
  std::mt19937_64 random(7);
  std::uniform_int_distribution<int> few(-3, 3), many(-1'000'000, 1'000'000);
  Recent recent;
  std::deque<double> last;
  CHECK(recent.is_empty());
  for (int i = 0; i < 1000; ++i) {
    const double value = i % 300 < 150 ? few(random) : many(random);
    recent.add(value);
    last.push_back(value);
    if (last.size() > Recent::kRemembered) last.pop_front();

    std::vector<double> sorted(last.begin(), last.end());
    std::sort(sorted.begin(), sorted.end());
    for (const double share : {0.0, 0.5, 0.9, 0.95, 1.0}) {
      const auto place = std::min(static_cast<std::size_t>(share * static_cast<double>(sorted.size())), sorted.size() - 1);
      REQUIRE(recent.quantile(share) == sorted[place]);
    }
  }
  CHECK_FALSE(recent.is_empty());
}

}  // namespace headrace::batching
