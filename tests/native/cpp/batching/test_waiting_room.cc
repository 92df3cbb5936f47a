// The queue against a plain list.
#include <algorithm>
#include <random>

#include "batching/scripted_call.h"
#include "batching/pace.h"
#include "batching/waiting_room.h"

namespace headrace::batching {

TEST_CASE("whatever comes and goes, the queue knows its order, its rows and its earliest deadline") {
  std::mt19937 random(7);
  std::vector<std::shared_ptr<ScriptedCall>> calls;
  std::vector<std::unique_ptr<Part>> parts;
  std::vector<Part*> waiting;
  WaitingRoom room;
  for (std::uint64_t step = 0; step < 5000; ++step) {
    if (waiting.empty() || random() % 5 < 3) {
      calls.push_back(call(0, 1));
      calls.back()->deadline = random() % 4 == 0 ? kNever : static_cast<double>(random() % 1000);
      auto part = std::make_unique<Part>();
      part->call = calls.back().get();
      part->rows = 1 + static_cast<std::int64_t>(random() % 5);
      part->nbytes = random() % 100;
      part->admitted_at = static_cast<double>(step);
      part->order = {static_cast<int>(random() % 3), std::min(calls.back()->deadline, 500.0), step, 0};
      room.add(*part, {static_cast<std::int64_t>(random() % 3)});
      waiting.push_back(part.get());
      parts.push_back(std::move(part));
    } else {
      const std::size_t which = random() % waiting.size();
      room.remove(*waiting[which]);
      waiting[which]->stage = Stage::kOver;
      waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(which));
    }
    if (step % 50 != 0) continue;
    std::int64_t rows = 0;
    double deadline = kNever;
    for (const Part* part : waiting) {
      rows += part->rows;
      deadline = std::min(deadline, part->call->deadline);
    }
    REQUIRE(room.rows() == rows);
    REQUIRE(room.earliest_deadline() == deadline);
    room.for_each_queue([&](Queue& queue) {
      const Part* first = nullptr;
      for (const Part* part : waiting) {
        if (part->queue == &queue && (first == nullptr || part->order < first->order)) first = part;
      }
      REQUIRE(queue.first() == first);
    });
    const double now = static_cast<double>(random() % 1000);
    const Part* const due = room.find_due(now);
    REQUIRE((due != nullptr) == (deadline <= now));
    if (due != nullptr) REQUIRE(due->call->deadline <= now);
    const Order order{1, 300, step, 0};
    std::int64_t before = 0;
    for (const Part* part : waiting) before += part->order < order ? part->rows : 0;
    REQUIRE(room.rows_before(order) == before);
  }
}

TEST_CASE("shapes that are gone do not pile up") {
  WaitingRoom room;
  const auto only = call(0);
  for (std::int64_t shape = 0; shape < 10000; ++shape) {
    Part part;
    part.call = only.get();
    part.rows = 1;
    room.add(part, {shape});
    room.remove(part);
    part.stage = Stage::kOver;
    REQUIRE(room.num_queues() <= 20);
  }
}

TEST_CASE("the pace forgets a slow run, keeps sizes apart, and draws a line between them") {
  Pace pace;
  CHECK(pace.run_seconds(8) == 0);
  pace.observe(1, 5.0, 0);
  for (int i = 0; i < 5; ++i) pace.observe(1, 0.1, 1);
  CHECK(pace.run_seconds(1) == doctest::Approx(0.1));
  CHECK(pace.run_seconds(4) == doctest::Approx(0.4));  // as much per row, while nothing else is known
  for (int i = 0; i < 5; ++i) pace.observe(9, 0.3, 2);
  CHECK(pace.run_seconds(5) == doctest::Approx(0.2));
  CHECK(pace.run_seconds(18) == doctest::Approx(0.6));
  CHECK(pace.seconds_per_row() == doctest::Approx(0.3 / 9));

  pace.observe(1, 0.1, 40);  // the larger size has not been seen for half a minute
  CHECK(pace.run_seconds(9) == doctest::Approx(0.9));
}

}  // namespace headrace::batching
