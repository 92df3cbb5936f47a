// Which of several programs runs.
#include <doctest/doctest.h>

#include <functional>
#include <stdexcept>
#include <utility>

#include "batching/batcher.h"
#include "programs/choice.h"

namespace headrace::programs {
namespace {

// Remembers how often it ran, and may do something meanwhile.
class Counting final : public batching::Program {
 public:
  int run(const batching::Batch&, std::vector<batching::Output>&) override {
    ++num_runs;
    if (const std::function<void()> act = meanwhile) act();  // it may change what is done next
    return 0;
  }
  int num_runs = 0;
  std::function<void()> meanwhile;
};

class Nobody final : public batching::Call {
 public:
  Nobody() { inputs.push_back({Element::kFp32, {1, 1}, {{reinterpret_cast<const std::byte*>(&value_), 4}}, nullptr, {}}); }
  void take(const batching::Share&) noexcept override {}
  void answered(const batching::Timing&) noexcept override {}
  void refused(const batching::Refusal&) noexcept override {}

 private:
  float value_ = 0;
};

std::shared_ptr<Processors::Runs> runs() {
  return std::make_shared<Processors::Runs>(std::make_shared<Processors>());
}

struct Served {
  Served() {
    batching::Limits limits;
    limits.max_batch_rows = 8;
    lanes = std::make_shared<batching::LaneGroup>(1);
    batcher = batching::Batcher::open(limits, true, lanes,
                                      std::make_shared<batching::Meters>(std::vector<double>{1}, std::vector<double>{8}));
  }
  ~Served() { batcher->close(nullptr, "SERVER_DRAINING", true); }

  // Ends when `act` has seen it.
  int with_batch(std::int64_t rows, batching::Program& program) const {
    batching::Batch batch;
    batch.batcher = batcher;
    batch.rows = rows;
    batch.feeds.resize(1);
    batch.feeds[0].shape = {rows, 1};
    std::vector<batching::Output> outputs;
    int variant = -1;
    try {
      variant = program.run(batch, outputs);
    } catch (const std::runtime_error&) {
      variant = -2;
    }
    batch.batcher = nullptr;  // nobody has taken it
    return variant;
  }

  std::shared_ptr<batching::LaneGroup> lanes;
  std::shared_ptr<batching::Batcher> batcher;
};

}  // namespace

TEST_CASE("each size of batch runs with its own program, says so, and the last takes everything larger") {
  const auto small = std::make_shared<Counting>(), large = std::make_shared<Counting>();
  Choice choice({{2, 5, small, small, small}, {8, 1, large, large, large}}, runs());
  const Served served;

  std::vector<int> variants;
  for (const std::int64_t rows : {1, 2, 3, 64}) variants.push_back(served.with_batch(rows, choice));

  CHECK(variants == std::vector<int>{5, 5, 1, 1});
  CHECK(small->num_runs == 2);
  CHECK(large->num_runs == 2);
}

TEST_CASE("a run uses all threads while it is alone, and few while another runs or calls wait") {
  const auto busy = std::make_shared<Counting>(), lone = std::make_shared<Counting>();
  Choice choice({{8, 0, busy, busy, lone}}, runs());
  const Served served;

  served.with_batch(1, choice);
  CHECK(std::pair(busy->num_runs, lone->num_runs) == std::pair(0, 1));
  lone->meanwhile = [&] {
    lone->meanwhile = nullptr;
    served.with_batch(1, choice);
  };
  served.with_batch(1, choice);
  CHECK(std::pair(busy->num_runs, lone->num_runs) == std::pair(1, 2));
  REQUIRE_FALSE(served.batcher->submit(std::make_shared<Nobody>()));
  served.with_batch(1, choice);
  CHECK(std::pair(busy->num_runs, lone->num_runs) == std::pair(2, 2));
}

TEST_CASE("a run beside another model's has a program of its own, whatever waits") {
  const auto beside_others = std::make_shared<Counting>(), busy = std::make_shared<Counting>(),
             lone = std::make_shared<Counting>();
  const auto processors = std::make_shared<Processors>(0);
  const auto own = std::make_shared<Processors::Runs>(processors), other = std::make_shared<Processors::Runs>(processors);
  Choice choice({{8, 0, beside_others, busy, lone}}, own);
  const Served served;

  CHECK(other->begin() == Company::kNone);
  served.with_batch(1, choice);
  REQUIRE_FALSE(served.batcher->submit(std::make_shared<Nobody>()));
  served.with_batch(1, choice);
  other->end();
  served.with_batch(1, choice);

  CHECK(beside_others->num_runs == 2);
  CHECK(busy->num_runs == 1);
  CHECK(lone->num_runs == 0);
}

TEST_CASE("a run that fails is no company for the next") {
  const auto busy = std::make_shared<Counting>(), lone = std::make_shared<Counting>();
  Choice choice({{8, 0, busy, busy, lone}}, runs());
  const Served served;
  lone->meanwhile = [] { throw std::runtime_error("no"); };

  CHECK(served.with_batch(1, choice) == -2);
  CHECK(served.with_batch(1, choice) == -2);

  CHECK(std::pair(busy->num_runs, lone->num_runs) == std::pair(0, 2));
}

TEST_CASE("there must be something to choose from") { CHECK_THROWS_AS(Choice({}, runs()), std::invalid_argument); }

}  // namespace headrace::programs
