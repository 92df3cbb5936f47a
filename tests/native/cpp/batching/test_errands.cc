// Calls that are run by the thread that brings them, in place of a lane that waits.
#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "batching/scripted_call.h"

namespace headrace::batching {
namespace {

// A model that takes so long by its own account, with one lane on a thread of its own.
class Office {
 public:
  explicit Office(double run_seconds, double delay = 0)
      : run_seconds_(run_seconds),
        lanes(std::make_shared<LaneGroup>(1)),
        batcher(Batcher::open(limits(8, delay), true, lanes,
                              std::make_shared<Meters>(std::vector<double>{0.001}, std::vector<double>{1, 8}))) {
    batcher->set_loss(nullptr, "MODEL_FAILED");
    batcher->set_runner(0, std::make_shared<const Runner>([this](std::unique_ptr<Batch> batch) {
                          if (before_run) before_run();
                          ++num_errands;
                          settle(std::move(batch));
                        }));
    lane_ = std::thread([this] {
      while (auto batch = lanes->take(0)) settle(std::move(batch));
      has_gone_home = true;
    });
  }
  ~Office() {
    batcher->close(nullptr, "SERVER_DRAINING");
    lanes->close();
    lane_.join();
  }

  // One call after the other, each when the one before has its answer.
  void serve(int count) {
    for (int i = 0; i < count; ++i) {
      const auto one = call(i);
      REQUIRE_FALSE(batcher->submit(one, true));
      REQUIRE(one->has_ended_within(60));
      CHECK(one->has_its_answer());
    }
  }

  // The lane's thread goes back to sleep only after the answer that its caller saw: goes on until it was so.
  bool serves_an_errand() {
    const double limit = steady_seconds() + 60;
    while (num_errands == 0 && steady_seconds() < limit) serve(1);
    return num_errands > 0;
  }

 private:
  void settle(std::unique_ptr<Batch> batch) const {
    if (run_seconds_ > 0.001) std::this_thread::sleep_for(std::chrono::duration<double>(run_seconds_));
    const Computed computed(*batch);
    const std::shared_ptr<Batcher> from = batch->batcher;
    from->settle(batch, computed.outputs, run_seconds_);
  }

  const double run_seconds_;

 public:
  const std::shared_ptr<LaneGroup> lanes;
  const std::shared_ptr<Batcher> batcher;
  std::function<void()> before_run;
  std::atomic<int> num_errands{0};
  std::atomic<bool> has_gone_home{false};

 private:
  std::thread lane_;
};

}  // namespace

TEST_CASE("who brings a call to an idle model of microseconds runs it itself") {
  Office office(0.000001);
  REQUIRE(office.serves_an_errand());
  office.serve(200);

  const Counts counts = office.batcher->meters().read();
  CHECK(counts.num_failed == 0);
  CHECK(counts.runs.at(1).num_runs == counts.num_answered);
}

TEST_CASE("a model that takes longer than it takes to wake a lane is run by the lane") {
  Office office(0.002);
  office.serve(30);

  CHECK(office.num_errands == 0);
}

TEST_CASE("a batch that waits for company is not run by who brings the first of it") {
  Office office(0.000001, 0.01);
  office.serve(20);

  CHECK(office.num_errands == 0);
}

TEST_CASE("a call of more rows than a batch may have comes out whole, whoever runs its slices") {
  Office office(0.000001);
  REQUIRE(office.serves_an_errand());
  for (int i = 0; i < 50; ++i) {
    const auto large = call(i, 20);
    REQUIRE_FALSE(office.batcher->submit(large, true));
    REQUIRE(large->has_ended_within(60));
    CHECK(large->has_its_answer());
  }
}

TEST_CASE("a lane does not go home before what was run in its place is done") {
  Office office(0.000001);
  REQUIRE(office.serves_an_errand());
  std::promise<void> has_begun, may_go_on;
  std::future<void> go_on = may_go_on.get_future();
  std::atomic<bool> is_first{true};
  office.before_run = [&] {
    if (!is_first.exchange(false)) return;
    has_begun.set_value();
    go_on.wait();
  };
  std::shared_ptr<ScriptedCall> one;
  std::thread bringer([&] {
    while (is_first) {
      one = call(1);
      if (office.batcher->submit(one, true)) break;
      one->has_ended_within(60);
    }
  });
  has_begun.get_future().wait();

  // More comes, for which there is no lane; and everything closes.
  const auto waiting = call(2);
  REQUIRE_FALSE(office.batcher->submit(waiting, true));
  office.lanes->ring(0);
  office.batcher->close(nullptr, "SERVER_DRAINING");
  office.lanes->close();
  CHECK(waiting->has_ended_within(60));
  CHECK(waiting->refusal);
  CHECK_FALSE(office.has_gone_home);
  may_go_on.set_value();
  bringer.join();
  CHECK(one->has_its_answer());
}

TEST_CASE("what comes while a call is run elsewhere is run there too, or by the lane, and never forgotten") {
  Office office(0.000001);
  REQUIRE(office.serves_an_errand());
  std::vector<std::thread> bringers;
  std::atomic<int> num_right{0};
  for (int i = 0; i < 3; ++i) {
    bringers.emplace_back([&, i] {
      for (int k = 0; k < 500; ++k) {
        const auto one = call(i * 1000 + k, 1 + k % 3);
        if (!office.batcher->submit(one, true) && one->has_ended_within(60) && one->has_its_answer()) ++num_right;
      }
    });
  }
  for (std::thread& bringer : bringers) bringer.join();

  CHECK(num_right == 1500);
  CHECK(office.batcher->calls_in_flight() == 0);
}

}  // namespace headrace::batching
