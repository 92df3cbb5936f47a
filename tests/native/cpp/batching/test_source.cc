// A lane that has nothing else to do sees to where its calls come from.
#include <atomic>
#include <functional>
#include <thread>
#include <utility>

#include "batching/scripted_call.h"
#include "batching/source.h"

namespace headrace::batching {
namespace {

// Brings what a test says, to whoever attends it; until it is rung for, when a test says nothing.
class Well final : public Source {
 public:
  void offer() noexcept override { ++num_offers; }
  bool attend(const std::atomic<bool>& is_called, double) noexcept override {
    ++num_attended;
    std::function<void()> brings;
    {
      std::unique_lock lock(mutex);
      brings = std::exchange(next, {});
      if (!brings) rung.wait(lock, [&] { return is_called.load(); });
    }
    if (brings) {
      here() = self;
      brings();
      here().reset();
    }
    return true;
  }
  void leave() noexcept override { ++num_left; }
  void ring() noexcept override {
    const std::lock_guard lock(mutex);
    rung.notify_all();
  }

  void bring(std::function<void()> what) {
    const std::lock_guard lock(mutex);
    next = std::move(what);
  }

  std::weak_ptr<Source> self;
  std::atomic<int> num_offers{0}, num_attended{0}, num_left{0};
  std::mutex mutex;
  std::condition_variable rung;
  std::function<void()> next;
};

// A lane on a thread of its own, and a well from which this thread brings the first calls.
struct Village {
  Village() {
    well->self = well;
    for (int i = 0; i < 20; ++i) {
      run_once(1, 0.00002);
      run_once(8, 0.01);
    }
    lane = std::thread([this] {
      while (std::unique_ptr<Batch> batch = lanes->take(0)) {
        const Computed computed(*batch);
        REQUIRE(batcher->settle(batch, computed.outputs, 0.00002));
      }
    });
  }
  ~Village() {
    batcher->close(nullptr, "SERVER_DRAINING", true);
    lanes->close();
    lane.join();
  }

  void run_once(std::int64_t rows, double seconds) {
    REQUIRE_FALSE(batcher->submit(call(0, rows)));
    std::unique_ptr<Batch> batch = lanes->take(0, 0);
    const Computed computed(*batch);
    REQUIRE(batcher->settle(batch, computed.outputs, seconds));
  }

  // Brings calls, until the lane was asleep when one came and saw to the well after it.
  void let_lane_attend() {
    for (int tries = 0; well->num_attended == 0 && tries < 100'000; ++tries) {
      const auto one = call(1);
      Source::here() = well;
      REQUIRE_FALSE(batcher->submit(one));
      Source::here().reset();
      REQUIRE(one->has_ended_within(60));
    }
    REQUIRE(well->num_attended > 0);
    CHECK(well->num_offers > 0);
  }

  std::shared_ptr<Well> well = std::make_shared<Well>();
  std::shared_ptr<LaneGroup> lanes = std::make_shared<LaneGroup>(1);
  std::shared_ptr<Batcher> batcher = Batcher::open(
      limits(), true, lanes, std::make_shared<Meters>(std::vector<double>{0.001, 1}, std::vector<double>{1, 8}));
  std::thread lane;
};

TEST_CASE("a lane runs what it has read itself") {
  bool has_stayed = false;
  // Where the machine is busy, a small run may seem so long that the lane says it will be away.
  for (int tries = 0; tries < 100 && !has_stayed; ++tries) {
    Village village;
    const auto read = call(7);
    std::thread::id reader;
    village.well->bring([&] {
      reader = std::this_thread::get_id();
      REQUIRE_FALSE(village.batcher->submit(read));
    });

    village.let_lane_attend();

    REQUIRE(read->has_ended_within(60));
    CHECK(read->has_its_answer());
    CHECK((reader == village.lane.get_id()));
    has_stayed = village.well->num_left == 0;
  }
  CHECK(has_stayed);
}

TEST_CASE("a lane that attends is rung for by those who come another way, and goes when it is sent home") {
  Village village;
  village.let_lane_attend();
  for (int times = 0; times < 100; ++times) {
    const auto other = call(times, 2);
    REQUIRE_FALSE(village.batcher->submit(other));
    REQUIRE(other->has_ended_within(60));
    CHECK(other->has_its_answer());
  }
}

TEST_CASE("a lane that will run for long says so before it does") {
  Village village;
  const auto large = call(7, 8);
  village.well->bring([&] { REQUIRE_FALSE(village.batcher->submit(large)); });

  village.let_lane_attend();

  REQUIRE(large->has_ended_within(60));
  CHECK(large->has_its_answer());
  CHECK(village.well->num_left >= 1);  // small runs last longer, too, where the machine is busy
}

}  // namespace
}  // namespace headrace::batching
