// Models whose batches a lane runs itself.
#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "batching/scripted_program.h"

namespace headrace::batching {
namespace {

void refuse_the_thirteenth(const Batch& batch) {
  for (const std::int64_t caller : callers_in(batch)) {
    if (caller == 13) throw std::runtime_error("thirteen");
  }
}

std::string what(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace

TEST_CASE("a lane runs the batches of a model that has a program, and comes back when nothing waits") {
  Bench bench(limits());
  const auto program = std::make_shared<ScriptedProgram>(nullptr, 3);
  bench.batcher->set_program(0, program);
  const auto first = call(1, 2), second = call(2), third = call(3, 8);
  for (const auto& each : {first, second, third}) REQUIRE_FALSE(bench.batcher->submit(each));

  CHECK(bench.lanes->serve(0, 0, settle) == nullptr);

  CHECK(program->num_runs == 2);
  for (const auto& each : {first, second, third}) {
    CHECK(each->has_its_answer());
    CHECK(each->timing->variant == 3);
  }
}

TEST_CASE("what a program takes is what its calls are told, and what its model is charged") {
  Bench bench(limits());
  bench.batcher->set_program(0, std::make_shared<ScriptedProgram>([&](const Batch&) { bench.now += 0.25; }));
  const auto only = call(1);
  REQUIRE_FALSE(bench.batcher->submit(only));

  CHECK(bench.lanes->serve(0, 0, settle) == nullptr);

  CHECK(only->timing->compute_seconds == doctest::Approx(0.25));
  CHECK(only->timing->finished_at == doctest::Approx(1000.25));
}

TEST_CASE("a batch with which a program fails comes back with its reason, and only the guilty call fails") {
  Bench bench(limits());
  bench.batcher->set_program(0, std::make_shared<ScriptedProgram>(refuse_the_thirteenth));
  const auto good = call(1), guilty = call(13), other = call(2);
  for (const auto& each : {good, guilty, other}) REQUIRE_FALSE(bench.batcher->submit(each));

  int num_failed = 0;
  while (std::unique_ptr<Batch> batch = bench.lanes->serve(0, 0, settle)) {
    REQUIRE(batch->failure != nullptr);
    CHECK(what(batch->failure) == "thirteen");
    ++num_failed;
    const std::shared_ptr<Batcher> from = batch->batcher;
    from->fail(std::move(batch), nullptr, "MODEL_FAILED");
  }

  CHECK(num_failed == 2);  // together, and alone
  CHECK(good->has_its_answer());
  CHECK(other->has_its_answer());
  REQUIRE(guilty->refusal);
  CHECK(guilty->refusal->outcome == "MODEL_FAILED");
}

TEST_CASE("outputs without a row for each row of the batch come back with it") {
  class Short final : public Program {
   public:
    int run(const Batch&, std::vector<Output>& outputs) override {
      Output output;
      output.element = Element::kInt64;
      output.shape = {0, 2};
      outputs.push_back(output);
      return 0;
    }
  };
  Bench bench(limits());
  bench.batcher->set_program(0, std::make_shared<Short>());
  const auto only = call(1);
  REQUIRE_FALSE(bench.batcher->submit(only));

  std::unique_ptr<Batch> batch = bench.lanes->serve(0, 0, settle);

  REQUIRE(batch != nullptr);
  CHECK(batch->failure == nullptr);
  REQUIRE(batch->outputs.size() == 1);
  CHECK(batch->outputs[0].shape == std::vector<std::int64_t>{0, 2});
  bench.batcher->fail(std::move(batch), nullptr, "MODEL_FAILED");
  CHECK(only->refusal);
}

TEST_CASE("batches of another model, and those that a program cannot read, are left to who asked") {
  Bench bench(limits());
  const auto other = bench.open(limits());
  const auto program = std::make_shared<ScriptedProgram>();
  bench.batcher->set_program(0, program);
  const auto foreign = call(1), strided = call(2), objects = call(3), plain = call(4);
  Input& apart = strided->inputs[0];
  apart.first = apart.pieces[0].data;
  apart.strides = {32, 16};
  apart.pieces.clear();
  objects->inputs[0].element.reset();
  REQUIRE_FALSE(other->submit(foreign));
  for (const auto& each : {strided, objects}) REQUIRE_FALSE(bench.batcher->submit(each));

  std::vector<std::unique_ptr<Batch>> left;
  while (std::unique_ptr<Batch> batch = bench.lanes->serve(0, 0, settle)) {
    CHECK(batch->failure == nullptr);
    CHECK(batch->outputs.empty());
    left.push_back(std::move(batch));
  }

  CHECK(left.size() == 3);
  CHECK(program->num_runs == 0);
  REQUIRE_FALSE(bench.batcher->submit(plain));
  CHECK(bench.lanes->serve(0, 0, settle) == nullptr);
  CHECK(plain->has_its_answer());
  for (std::unique_ptr<Batch>& batch : left) {
    const std::shared_ptr<Batcher> from = batch->batcher;
    from->fail(std::move(batch), nullptr, "MODEL_FAILED");
  }
}

TEST_CASE("a lane that runs batches itself comes back when somebody rings, and when it is sent home") {
  const auto lanes = std::make_shared<LaneGroup>(1);
  const auto batcher = Batcher::open(limits(), true, lanes, std::make_shared<Meters>(std::vector<double>{1}, std::vector<double>{8}));
  batcher->set_program(0, std::make_shared<ScriptedProgram>());
  std::atomic<int> num_returns{0};
  std::thread lane([&] {
    while (!lanes->is_closed()) {
      CHECK(lanes->serve(0, kNever, settle) == nullptr);
      ++num_returns;
    }
  });

  for (int i = 0; i < 200; ++i) {
    const auto each = call(i);
    REQUIRE_FALSE(batcher->submit(each));
    if (i % 10 == 0) lanes->ring(0);
    REQUIRE(each->has_ended_within(60));
    CHECK(each->has_its_answer());
  }
  batcher->close(nullptr, "SERVER_DRAINING");
  lanes->close();
  lane.join();

  CHECK(num_returns >= 1);
}

TEST_CASE("a model that is closed while its program runs answers what runs, and refuses what waits") {
  const auto lanes = std::make_shared<LaneGroup>(1);
  const auto batcher = Batcher::open(limits(1), true, lanes, std::make_shared<Meters>(std::vector<double>{1}, std::vector<double>{8}));
  std::atomic<bool> runs{false}, may_end{false};
  batcher->set_program(0, std::make_shared<ScriptedProgram>([&](const Batch&) {
                         runs = true;
                         while (!may_end) std::this_thread::yield();
                       }));
  std::thread lane([&] { CHECK(lanes->serve(0, kNever, settle) == nullptr); });
  const auto running = call(1), waiting = call(2);
  REQUIRE_FALSE(batcher->submit(running));
  while (!runs) std::this_thread::yield();
  REQUIRE_FALSE(batcher->submit(waiting));

  batcher->close(nullptr, "SERVER_DRAINING");
  may_end = true;
  lanes->close();
  lane.join();

  CHECK(running->has_its_answer());
  REQUIRE(waiting->refusal);
  CHECK(waiting->refusal->kind == Refusal::Kind::kClosed);
}

}  // namespace headrace::batching
