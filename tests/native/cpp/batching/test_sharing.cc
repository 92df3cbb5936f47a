// How lanes divide among them what waits.
#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "batching/scripted_call.h"

namespace headrace::batching {
namespace {

constexpr double kRowSeconds = 0.01;

// A model for which a row takes the same in every batch.
void teach_rows(Bench& bench) {
  for (const std::int64_t rows : {1, 8, 64}) bench.teach(kRowSeconds * static_cast<double>(rows), rows);
}

void submit(Bench& bench, int num_calls) {
  for (int caller = 0; caller < num_calls; ++caller) REQUIRE_FALSE(bench.batcher->submit(call(caller)));
}

std::int64_t rows_taken(Bench& bench, std::size_t lane, std::vector<std::unique_ptr<Batch>>& running) {
  std::unique_ptr<Batch> batch = bench.lanes->take(lane, 0);
  if (batch == nullptr) return 0;
  running.push_back(std::move(batch));
  return running.back()->rows;
}

void settle_all(Bench& bench, std::vector<std::unique_ptr<Batch>>& running) {
  for (auto& batch : running) bench.settle(std::move(batch));
}

}  // namespace

TEST_CASE("a lane leaves the others their part, where a row takes the same in every batch") {
  Bench bench(limits(64), 2);
  teach_rows(bench);
  submit(bench, 9);

  std::vector<std::unique_ptr<Batch>> running;
  CHECK(rows_taken(bench, 0, running) == 5);
  CHECK(rows_taken(bench, 1, running) == 4);
  CHECK(running[0]->reason == Reason::kIdle);

  settle_all(bench, running);
}

TEST_CASE("what other lanes run already is part of what they take") {
  Bench bench(limits(64), 2);
  teach_rows(bench);
  std::vector<std::unique_ptr<Batch>> running;
  submit(bench, 2);
  REQUIRE(rows_taken(bench, 0, running) == 1);
  REQUIRE(rows_taken(bench, 1, running) == 1);
  bench.settle(std::move(running[0]));
  running.erase(running.begin());

  submit(bench, 21);

  CHECK(rows_taken(bench, 0, running) == 11);
  CHECK(bench.batcher->waiting_rows() == 10);

  settle_all(bench, running);
  bench.run_all();
}

TEST_CASE("a lane takes all that waits where that costs less than to divide it") {
  Bench bench(limits(64), 2);
  bench.teach(0.010, 1);
  bench.teach(0.012, 8);
  submit(bench, 8);

  std::vector<std::unique_ptr<Batch>> running;
  CHECK(rows_taken(bench, 0, running) == 8);

  settle_all(bench, running);
}

TEST_CASE("a lane takes all that waits of a model of which nothing is known, or whose runs are over at once") {
  for (const double row_seconds : {0.0, 0.00001}) {
    Bench bench(limits(64), 2);
    if (row_seconds > 0) {
      for (const std::int64_t rows : {1, 8}) bench.teach(row_seconds * static_cast<double>(rows), rows);
    }
    submit(bench, 8);

    std::vector<std::unique_ptr<Batch>> running;
    CHECK(rows_taken(bench, 0, running) == 8);

    settle_all(bench, running);
  }
}

TEST_CASE("a lane waits for a full batch where it was told to, and takes all of it") {
  Bench bench(limits(8, 5), 2);
  for (int i = 0; i < 20; ++i) {
    submit(bench, 8);
    bench.settle(bench.lanes->take(0, 0), 8 * kRowSeconds);
  }
  submit(bench, 8);

  std::vector<std::unique_ptr<Batch>> running;
  CHECK(rows_taken(bench, 0, running) == 8);
  CHECK(running[0]->reason == Reason::kFull);

  settle_all(bench, running);
}

TEST_CASE("a call with more rows than a lane's part is not kept waiting") {
  Bench bench(limits(64), 2);
  teach_rows(bench);
  REQUIRE_FALSE(bench.batcher->submit(call(0, 20)));
  submit(bench, 4);

  std::vector<std::unique_ptr<Batch>> running;
  CHECK(rows_taken(bench, 0, running) == 20);
  CHECK(rows_taken(bench, 1, running) == 4);

  settle_all(bench, running);
}

TEST_CASE("callers who ask again as soon as they are answered are soon evenly divided, however they began") {
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    const auto num_lanes = static_cast<std::size_t>(2 + round % 3);
    const auto num_callers = static_cast<std::int64_t>(num_lanes * std::uniform_int_distribution<std::size_t>(1, 20)(random));
    Bench bench(limits(128), num_lanes);
    teach_rows(bench);
    std::vector<std::unique_ptr<Batch>> lanes(num_lanes);
    std::vector<double> free_at(num_lanes, 0);
    // The first lanes that look find few calls, the last all the others.
    std::int64_t num_left = num_callers;
    const double begun_at = bench.now;
    std::vector<std::int64_t> last(num_lanes, 0);
    for (std::size_t lane = 0; lane < num_lanes; ++lane) {
      const std::int64_t most = std::max<std::int64_t>(num_left - static_cast<std::int64_t>(num_lanes - lane - 1), 1);
      const std::int64_t count =
          lane + 1 == num_lanes ? num_left : std::uniform_int_distribution<std::int64_t>(1, most)(random);
      submit(bench, static_cast<int>(count));
      lanes[lane] = bench.lanes->take(lane, 0);
      REQUIRE(lanes[lane] != nullptr);
      free_at[lane] = bench.now + kRowSeconds * static_cast<double>(lanes[lane]->rows);
      num_left -= count;
    }

    const double a_round = kRowSeconds * static_cast<double>(num_callers);
    while (bench.now < begun_at + 6 * a_round) {
      const auto lane = static_cast<std::size_t>(std::min_element(free_at.begin(), free_at.end()) - free_at.begin());
      bench.now = std::max(bench.now, free_at[lane]);
      if (lanes[lane] != nullptr) {
        const auto rows = static_cast<int>(lanes[lane]->rows);
        bench.settle(std::move(lanes[lane]), kRowSeconds * static_cast<double>(rows));
        submit(bench, rows);
      }
      for (std::size_t any = 0; any < num_lanes; ++any) {
        if (lanes[any] != nullptr) continue;
        lanes[any] = bench.lanes->take(any, 0);
        if (lanes[any] != nullptr) last[any] = lanes[any]->rows;
        free_at[any] = bench.now + kRowSeconds * static_cast<double>(lanes[any] == nullptr ? 1 : lanes[any]->rows);
      }
    }
    const auto [least, most] = std::minmax_element(last.begin(), last.end());
    INFO(num_callers << " callers, " << num_lanes << " lanes");
    CHECK(*most - *least <= static_cast<std::int64_t>(num_lanes));
    for (auto& batch : lanes) {
      if (batch != nullptr) bench.settle(std::move(batch));
    }
  }
}

}  // namespace headrace::batching
