#include "batching/forecast.h"

#include <algorithm>
#include <cmath>

namespace headrace::batching {

double Forecast::done_at(std::int64_t rows_ahead, std::int64_t rows, const Pace& pace, std::int64_t max_batch_rows,
                         std::vector<double>& free_at) const {
  const std::int64_t usual = crowded_rows_.is_empty()
                                 ? max_batch_rows
                                 : std::clamp<std::int64_t>(std::llround(crowded_rows_.quantile(0.5)), 1, max_batch_rows);
  const double usual_seconds = pace.run_seconds(usual);
  // All lanes run as often as they all do before its turn; then one after the other, as they become free.
  const std::int64_t in_a_round = usual * static_cast<std::int64_t>(free_at.size());
  const std::int64_t rounds = rows_ahead / in_a_round;
  std::int64_t ahead = rows_ahead - rounds * in_a_round;
  while (true) {
    const auto first = std::min_element(free_at.begin(), free_at.end());
    if (ahead < usual) {
      return *first + static_cast<double>(rounds) * usual_seconds + pace.run_seconds(ahead + rows);
    }
    ahead -= usual;
    *first += usual_seconds;
  }
}

void Forecast::observe(double expected_at, double done_at) {
  late_by_.add(done_at - expected_at);
  is_margin_known_ = false;
}

double Forecast::margin_seconds() const {
  if (!is_margin_known_) {
    margin_seconds_ = std::max(late_by_.quantile(kShareInTime), 0.0);
    is_margin_known_ = true;
  }
  return margin_seconds_;
}

}  // namespace headrace::batching
