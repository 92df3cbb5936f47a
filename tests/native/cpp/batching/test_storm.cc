// Many submitters, leavers and lanes at once: everybody hears once, and gets what is his.
#include <atomic>
#include <random>
#include <stdexcept>
#include <thread>

#include "batching/scripted_program.h"

namespace headrace::batching {
namespace {

constexpr int kSubmitters = 4;
constexpr int kCallsEach = 1500;

// Fails now and then.
std::shared_ptr<Program> program() {
  const auto num_runs = std::make_shared<std::atomic<int>>(0);
  return std::make_shared<ScriptedProgram>([num_runs](const Batch&) {
    if (++*num_runs % 50 == 0) throw std::runtime_error("fiftieth");
  });
}

// Computes until the group closes; now and then a batch fails, or is dropped.
void live(LaneGroup& lanes, std::size_t number) {
  std::mt19937 random(static_cast<unsigned>(number));
  while (auto batch = lanes.serve(number, kNever, settle)) {
    const std::shared_ptr<Batcher> batcher = batch->batcher;
    if (batch->failure != nullptr || random() % 50 == 0) {
      batcher->fail(std::move(batch), nullptr, "MODEL_FAILED");
    } else if (random() % 200 == 0) {
      batch.reset();
    } else {
      const Computed computed(*batch);
      batcher->settle(batch, computed.outputs, 0.00001);
    }
  }
}

struct Tally {
  std::atomic<int> answered{0}, refused{0}, left{0}, wrong{0};
};

void submit(Batcher& batcher, int number, Tally& tally) {
  std::mt19937 random(1000u + static_cast<unsigned>(number));
  const std::int64_t sizes[] = {1, 1, 1, 2, 5, 40};
  std::vector<std::pair<std::shared_ptr<ScriptedCall>, bool>> calls;
  for (int i = 0; i < kCallsEach; ++i) {
    const double deadline = random() % 3 == 0 ? steady_seconds() + 0.002 * static_cast<double>(random() % 20) : kNever;
    auto made = call(number * kCallsEach + i, sizes[random() % 6], static_cast<int>(random() % 3), deadline);
    if (batcher.submit(made)) {
      ++tally.refused;
      continue;
    }
    calls.emplace_back(made, false);
    if (random() % 5 == 0) {
      auto& [leaver, has_left] = calls[calls.size() - 1 - random() % std::min<std::size_t>(calls.size(), 20)];
      if (!has_left && batcher.leave(*leaver) != Departure::kTooLate) has_left = true;
    }
  }
  for (auto& [made, has_left] : calls) {
    if (has_left) {
      ++tally.left;
      continue;
    }
    if (!made->has_ended_within(60)) {
      ++tally.wrong;
    } else if (made->refusal) {
      ++tally.refused;
    } else {
      ++(made->has_its_answer() ? tally.answered : tally.wrong);
    }
  }
}

}  // namespace

TEST_CASE("in a storm of submitters, leavers, deadlines and failures everybody hears once") {
  const auto lanes = std::make_shared<LaneGroup>(2);
  std::vector<std::shared_ptr<Batcher>> batchers;
  for (int i = 0; i < 2; ++i) {
    batchers.push_back(Batcher::open(limits(16), true, lanes,
                                     std::make_shared<Meters>(std::vector<double>{0.001}, std::vector<double>{1, 8})));
    batchers.back()->set_loss(nullptr, "MODEL_FAILED");
  }
  for (std::size_t lane = 0; lane < 2; ++lane) batchers[0]->set_program(lane, program());
  std::vector<std::thread> lane_threads, submitters;
  for (std::size_t i = 0; i < 2; ++i) lane_threads.emplace_back([&, i] { live(*lanes, i); });
  Tally tally;
  for (int i = 0; i < kSubmitters; ++i) {
    submitters.emplace_back([&, i] { submit(*batchers[static_cast<std::size_t>(i % 2)], i, tally); });
  }
  for (std::thread& thread : submitters) thread.join();

  CHECK(tally.wrong == 0);
  CHECK(tally.answered + tally.refused + tally.left == kSubmitters * kCallsEach);
  CHECK(tally.answered > kSubmitters * kCallsEach / 4);
  for (const auto& batcher : batchers) {
    CHECK(batcher->waiting_rows() == 0);
    batcher->close(nullptr, "SERVER_DRAINING");
  }
  lanes->close();
  for (std::thread& thread : lane_threads) thread.join();
  std::uint64_t counted = 0;
  for (const auto& batcher : batchers) {
    CHECK(batcher->calls_in_flight() == 0);
    const Counts counts = batcher->meters().read();
    counted += counts.num_answered + counts.num_failed;
  }
  CHECK(counted == kSubmitters * kCallsEach);
}

TEST_CASE("closing in the middle of a storm ends every call") {
  for (int round = 0; round < 5; ++round) {
    const auto lanes = std::make_shared<LaneGroup>(2);
    auto batcher = Batcher::open(limits(16), true, lanes,
                                 std::make_shared<Meters>(std::vector<double>{0.001}, std::vector<double>{1, 8}));
    batcher->set_loss(nullptr, "MODEL_FAILED");
    if (round > 1) {
      for (std::size_t lane = 0; lane < 2; ++lane) batcher->set_program(lane, program());
    }
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < 2; ++i) threads.emplace_back([&, i] { live(*lanes, i); });
    Tally tally;
    std::vector<std::thread> submitters;
    for (int i = 0; i < 2; ++i) submitters.emplace_back([&, i] { submit(*batcher, i, tally); });
    while (batcher->meters().read().num_answered < 100) std::this_thread::yield();
    batcher->close(nullptr, "SERVER_DRAINING", round % 2 == 1);
    for (std::thread& thread : submitters) thread.join();
    lanes->close();
    for (std::thread& thread : threads) thread.join();

    CHECK(tally.wrong == 0);
    CHECK(tally.answered + tally.refused + tally.left == 2 * kCallsEach);
    CHECK(batcher->calls_in_flight() == 0);
  }
}

}  // namespace headrace::batching
