// More calls than can be answered: who is let in, and what is computed.
#include <algorithm>
#include <random>

#include "batching/town.h"
#include "batching/way.h"

namespace headrace::batching {
namespace {

// A transformer on two lanes, an image network on one, and a model of microseconds.
Town sentences() { return {}; }

Town images() {
  Town town;
  town.seconds_of_a_run = 0.002;
  town.seconds_of_a_row = 0.033;
  town.deadline_seconds = 0.2;
  return town;
}

Town moments() {
  Town town;
  town.seconds_of_a_run = 0.00008;
  town.seconds_of_a_row = 0.00002;
  town.num_lanes = 1;
  town.deadline_seconds = 0.005;
  town.seconds_in = town.seconds_back = 0.0002;
  return town;
}

// Lets the batcher see runs of all sizes that take exactly so long for each row.
void teach_exactly(Bench& bench, double row, std::int64_t most) {
  for (std::int64_t rows = 1; rows <= most; rows *= 2) bench.teach(row * static_cast<double>(rows), rows);
}

}  // namespace

TEST_CASE("goodput stays within a tenth of its peak, however many more call than can be answered") {
  for (Town town : {sentences(), images(), moments()}) {
    for (const double spread : {0.02, 0.2}) {
      town.spread = spread;
      const double capacity = town.capacity(town.max_batch_rows);
      const double seconds = std::max(20.0, 2000 / capacity);
      const double span = std::min(seconds, 20'000 / capacity);
      double peak = 0, least = kNever;
      for (const double multiple : {0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0}) {
        const Town::Found found = town.live(multiple * capacity, span);
        peak = std::max(peak, found.good_per_second());
        if (multiple > 1) least = std::min(least, found.good_per_second());
        CAPTURE(multiple);
        CAPTURE(found.num_good);
        CAPTURE(found.num_late);
        CHECK_FALSE(found.has_idled);
        // What is computed for nobody: learning the margin costs a few, no more.
        CHECK(found.num_late < 0.05 * found.num_good + 20);
      }
      CAPTURE(capacity);
      CAPTURE(spread);
      CHECK(least >= 0.9 * peak);
    }
  }
}

TEST_CASE("answers whose way is long are computed so much earlier") {
  Town town = sentences();
  town.seconds_in = town.seconds_back = 0.006;
  const Town::Found found = town.live(2 * town.capacity(32), 20);

  CHECK(found.num_late < 0.05 * found.num_good);
}

TEST_CASE("a model that becomes slower is soon believed to be") {
  Town town = sentences();
  town.slowdown = 1.6;
  const Town::Found found = town.live(2 * town.capacity(32), 40);

  CHECK_FALSE(found.has_idled);
  CHECK(found.num_late < 0.05 * found.num_good);
}

TEST_CASE("whoever is let in is in time, where a row takes the same in every batch") {
  std::mt19937_64 random(7);
  const auto any = [&](double least, double most) { return std::uniform_real_distribution<double>(least, most)(random); };
  int num_admitted = 0, num_refused = 0;
  for (int round = 0; round < 300; ++round) {
    // Where more waits than a batch takes, some give way to others: here that never is so, or changes nothing.
    const std::int64_t most = round % 2 == 0 ? 1 : 256;
    const double row = any(0.001, 0.01);
    Bench bench(limits(most));
    teach_exactly(bench, row, most);
    // One is in the lane when the others come, and who comes later is due later.
    REQUIRE_FALSE(bench.batcher->submit(call(0)));
    std::unique_ptr<Batch> running = bench.lanes->take(0, 0);
    const double ends_at = bench.now + row;
    REQUIRE_FALSE(bench.batcher->submit(call(1, 1, 1)));
    std::vector<std::shared_ptr<ScriptedCall>> admitted;
    double due = bench.now + any(0.01, 0.05);
    for (int caller = 2; caller < 40; ++caller) {
      due += any(0, 0.01);
      const auto one = call(caller, std::uniform_int_distribution<std::int64_t>(1, std::min<std::int64_t>(most, 4))(random), 0, due);
      if (const auto refusal = bench.batcher->submit(one)) {
        CHECK(refusal->kind == Refusal::Kind::kLate);
        CHECK(refusal->retry_after_seconds > 0);
        ++num_refused;
      } else {
        admitted.push_back(one);
      }
    }
    bench.now = ends_at;
    bench.settle(std::move(running), row);
    while (std::unique_ptr<Batch> batch = bench.lanes->take(0, 0)) {
      const double takes = row * static_cast<double>(batch->rows);
      bench.now += takes;
      bench.settle(std::move(batch), takes);
    }
    for (const auto& one : admitted) {
      REQUIRE(one->timing);
      CHECK(one->timing->finished_at <= one->deadline + 1e-9);
    }
    num_admitted += static_cast<int>(admitted.size());
  }
  // It says something about both.
  CHECK(num_admitted > 300);
  CHECK(num_refused > 300);
}

TEST_CASE("a call that comes when nothing waits is let in, whatever is expected of it") {
  Bench bench(limits(8));
  bench.teach(1);
  REQUIRE_FALSE(bench.batcher->submit(call(1)));
  auto running = bench.lanes->take(0, 0);

  CHECK_FALSE(bench.batcher->submit(call(2, 1, 0, bench.now + 0.5)));
  bench.settle(std::move(running));
}

TEST_CASE("what would be late when its turn comes is not computed beside others") {
  Bench bench(limits(8));
  bench.teach(1, 8);
  for (int i = 0; i < 300; ++i) bench.batcher->sent(0.1);
  const double way = 0.1;
  // Computed in time, and late all the same when its answer has come home.
  const auto late = call(1, 1, 0, bench.now + 1 + way / 2);
  REQUIRE_FALSE(bench.batcher->submit(late));
  REQUIRE_FALSE(bench.batcher->submit(call(2)));

  CHECK(bench.run_all() == Callers{{2}});
  REQUIRE(late->refusal);
  CHECK(late->refusal->kind == Refusal::Kind::kExpired);
}

TEST_CASE("one slow reader is not the way of all") {
  Way way;
  for (int i = 0; i < 300; ++i) way.observe(0.001);
  way.observe(60);

  CHECK(way.seconds() > 0.0008);
  CHECK(way.seconds() < 0.0013);
}

TEST_CASE("the way is what nine of ten do not exceed") {
  std::mt19937_64 random(3);
  std::uniform_real_distribution<double> any(0, 0.001);
  Way way;
  for (int i = 0; i < 2000; ++i) way.observe(any(random));
  double sum = 0;
  for (int i = 0; i < 5000; ++i) {
    way.observe(any(random));
    sum += way.seconds();
  }

  CHECK(sum / 5000 == doctest::Approx(0.0009).epsilon(0.1));
}

}  // namespace headrace::batching
