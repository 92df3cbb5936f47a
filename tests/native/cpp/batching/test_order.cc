// Who goes first, with whom, and who does not go at all.
#include "batching/scripted_call.h"

namespace headrace::batching {

TEST_CASE("higher priority goes first, then the earlier deadline, then earlier arrival") {
  Bench bench(limits(1));
  const double soon = bench.now + 2, later = bench.now + 5;
  const auto calls = {call(0), call(1, 1, 0, later), call(2, 1, 0, soon), call(3, 1, 7, later), call(4)};
  for (const auto& one : calls) REQUIRE_FALSE(bench.batcher->submit(one));

  CHECK(bench.run_all() == Callers{{3}, {2}, {1}, {0}, {4}});
}

TEST_CASE("a call without a deadline is not overtaken by those that come ten seconds later") {
  Bench bench(limits(1));
  REQUIRE_FALSE(bench.batcher->submit(call(0)));
  bench.now += 5;
  REQUIRE_FALSE(bench.batcher->submit(call(1, 1, 0, bench.now + 1)));
  bench.now += 0.5;
  REQUIRE_FALSE(bench.batcher->submit(call(2, 1, 0, bench.now + 5)));

  CHECK(bench.run_all() == Callers{{1}, {0}, {2}});
}

TEST_CASE("a batch takes no more rows than its most urgent call can wait for") {
  Bench bench(limits(8));
  bench.teach(0.1, 1);
  bench.teach(0.8, 8);
  // The first comes to an empty queue; the others are not urgent.
  const auto urgent = call(1, 1, 0, bench.now + 0.35);
  REQUIRE_FALSE(bench.batcher->submit(urgent));
  for (int caller = 2; caller < 7; ++caller) REQUIRE_FALSE(bench.batcher->submit(call(caller)));

  const auto batch = bench.lanes->take(0, 0);

  REQUIRE(batch != nullptr);
  CHECK(callers_in(*batch) == std::vector<std::int64_t>{1, 2, 3});
  CHECK(batch->reason == Reason::kDeadline);
}

TEST_CASE("a lane that waits for company stops waiting in time for a deadline") {
  Bench bench(limits(8, 5));
  const auto urgent = call(1, 1, 0, bench.now + 1);
  REQUIRE_FALSE(bench.batcher->submit(urgent));
  CHECK(bench.lanes->take(0, 0) == nullptr);

  bench.now += 1;
  // Nothing is known of this model yet: the last moment is the deadline itself, at which it is not worth running.
  CHECK(bench.lanes->take(0, 0) == nullptr);
  REQUIRE(urgent->refusal);
  CHECK(urgent->refusal->kind == Refusal::Kind::kExpired);
  CHECK(urgent->refusal->queue_seconds == doctest::Approx(1));
}

TEST_CASE("while more waits than one batch takes, who would make it a small one gives way") {
  Bench bench(limits(4));
  bench.teach(0.1, 1);
  bench.teach(0.4, 4);
  const auto tight = call(1, 1, 0, bench.now + 0.2);
  REQUIRE_FALSE(bench.batcher->submit(tight));
  for (int caller = 2; caller < 7; ++caller) REQUIRE_FALSE(bench.batcher->submit(call(caller)));

  CHECK(bench.run_all() == Callers{{2, 3, 4, 5}, {6}});
  REQUIRE(tight->refusal);
  CHECK(tight->refusal->kind == Refusal::Kind::kExpired);
}

TEST_CASE("a call that would be late in the queue is refused at once, with a time to come back") {
  Bench bench(limits(8));
  bench.teach(1, 8);
  for (int caller = 1; caller < 5; ++caller) REQUIRE_FALSE(bench.batcher->submit(call(caller, 8, 1)));

  const auto late = call(9, 1, 0, bench.now + 2);
  const auto refusal = bench.batcher->submit(late);

  REQUIRE(refusal);
  CHECK(refusal->kind == Refusal::Kind::kLate);
  CHECK(refusal->retry_after_seconds == doctest::Approx(5));
  CHECK(late->num_ends == 0);
  CHECK_FALSE(bench.batcher->submit(call(10, 1, 2, bench.now + 2)));
  CHECK(bench.batcher->meters().read().shed.at("late") == 1);
}

TEST_CASE("what runs already counts in the prediction") {
  Bench bench(limits(8));
  bench.teach(1, 8);
  REQUIRE_FALSE(bench.batcher->submit(call(1, 8)));
  auto running = bench.lanes->take(0, 0);
  REQUIRE_FALSE(bench.batcher->submit(call(2, 1, 1)));

  CHECK(bench.batcher->submit(call(3, 1, 0, bench.now + 1.5)));  // a second until the lane is free, and another
  bench.now += 0.75;
  CHECK_FALSE(bench.batcher->submit(call(4, 1, 0, bench.now + 1.5)));
  bench.settle(std::move(running));
}

TEST_CASE("a model that has cost much gives way to one that has not") {
  Bench bench(limits(1));
  const auto other = bench.open(limits(1));
  int slow = 0, fast = 0;
  for (int i = 0; i < 200; ++i) {
    REQUIRE_FALSE(bench.batcher->submit(call(1)));
    REQUIRE_FALSE(other->submit(call(2)));
  }
  for (int i = 0; i < 110; ++i) {
    auto batch = bench.lanes->take(0, 0);
    REQUIRE(batch != nullptr);
    const bool is_slow = batch->batcher == bench.batcher;
    ++(is_slow ? slow : fast);
    bench.settle(std::move(batch), is_slow ? 1.0 : 0.1);
  }

  // Each gets the same time, not the same number of runs.
  CHECK(slow >= 8);
  CHECK(slow <= 12);
}

TEST_CASE("a model that was away comes back without a credit") {
  Bench bench(limits(1));
  const auto other = bench.open(limits(1));
  for (int i = 0; i < 50; ++i) {
    REQUIRE_FALSE(bench.batcher->submit(call(1)));
    bench.settle(bench.lanes->take(0, 0), 1.0);
  }
  for (int i = 0; i < 50; ++i) {
    REQUIRE_FALSE(bench.batcher->submit(call(1)));
    REQUIRE_FALSE(other->submit(call(2)));
  }
  int returned = 0;
  for (int i = 0; i < 20; ++i) {
    auto batch = bench.lanes->take(0, 0);
    returned += batch->batcher == other ? 1 : 0;
    bench.settle(std::move(batch), 1.0);
  }
  CHECK(returned >= 9);
  CHECK(returned <= 11);
}

}  // namespace headrace::batching
