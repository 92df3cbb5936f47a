// What becomes of one call: its rows, its end, its memory.
#include <array>
#include <thread>

#include "batching/scripted_call.h"

namespace headrace::batching {

TEST_CASE("a call larger than a batch is taken slice by slice and answered once") {
  Bench bench(limits(8));
  const auto large = call(1, 21), small = call(2, 3);
  REQUIRE_FALSE(bench.batcher->submit(large));
  REQUIRE_FALSE(bench.batcher->submit(small));

  CHECK(bench.run_all() == Callers{{1}, {1}, {1, 2}});

  CHECK(large->num_takes == 3);
  CHECK(large->has_its_answer());
  CHECK(small->has_its_answer());
  CHECK(large->timing->batch_rows == 8);
}

TEST_CASE("a lone call that lies together is not copied, one that does not is aligned") {
  Bench bench(limits());
  const auto lone = call(1, 2);
  REQUIRE_FALSE(bench.batcher->submit(lone));
  auto batch = bench.lanes->take(0, 0);
  CHECK(batch->feeds[0].data == lone->inputs[0].pieces[0].data);
  bench.settle(std::move(batch));
  CHECK(lone->is_whole);

  // Bytes off the wire, three after an aligned address, and cut in the middle of an element.
  const auto torn = call(2, 2);
  std::array<std::byte, 64> first{}, second{};
  const auto* const values = reinterpret_cast<const std::byte*>(torn->values.data());
  std::memcpy(first.data() + 3, values, 11);
  std::memcpy(second.data(), values + 11, 1);
  std::memcpy(second.data() + 5, values + 12, 20);
  torn->inputs[0].pieces = {{first.data() + 3, 11}, {second.data(), 1}, {nullptr, 0}, {second.data() + 5, 20}};
  REQUIRE_FALSE(bench.batcher->submit(torn));
  batch = bench.lanes->take(0, 0);
  CHECK(reinterpret_cast<std::uintptr_t>(batch->feeds[0].data) % 64 == 0);
  bench.settle(std::move(batch));
  CHECK(torn->has_its_answer());
}

TEST_CASE("rows are converted into what the lane's program takes while they are put together") {
  Bench bench(limits());
  bench.batcher->set_feed_elements(0, {Element::kBf16});
  std::vector<std::shared_ptr<ScriptedCall>> calls;
  std::array<float, 4> values{1.5f, -2.0f, 1024.0f, 0.25f};
  for (int i = 0; i < 2; ++i) {
    calls.push_back(call(i, 1));
    calls.back()->inputs[0].element = Element::kFp32;
    // Cut after three bytes: an element lies in two pieces.
    const auto* const bytes = reinterpret_cast<const std::byte*>(values.data() + 2 * i);
    calls.back()->inputs[0].pieces = {{bytes, 3}, {bytes + 3, 5}};
    REQUIRE_FALSE(bench.batcher->submit(calls.back()));
  }

  auto batch = bench.lanes->take(0, 0);

  REQUIRE(batch->feeds[0].element == Element::kBf16);
  for (std::size_t i = 0; i < 4; ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, batch->feeds[0].data + 2 * i, 2);
    std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float value = 0;
    std::memcpy(&value, &bits, 4);
    CHECK(value == values[i]);
  }
  bench.batcher->fail(std::move(batch), nullptr, "MODEL_FAILED");
}

TEST_CASE("a batch that fails runs again one call at a time") {
  Bench bench(limits());
  const auto good = call(1), bad = call(2);
  REQUIRE_FALSE(bench.batcher->submit(good));
  REQUIRE_FALSE(bench.batcher->submit(bad));

  bench.batcher->fail(bench.lanes->take(0, 0), nullptr, "MODEL_FAILED");
  bench.settle(bench.lanes->take(0, 0));
  bench.batcher->fail(bench.lanes->take(0, 0), nullptr, "MODEL_FAILED");

  CHECK(good->has_its_answer());
  REQUIRE(bad->refusal);
  CHECK(bad->refusal->kind == Refusal::Kind::kError);
  CHECK(bench.batcher->meters().read().outcomes.at("MODEL_FAILED") == 1);
}

TEST_CASE("a batch that a lane drops has failed") {
  Bench bench(limits());
  const auto lost = call(1);
  bench.batcher->set_loss(nullptr, "MODEL_FAILED");
  REQUIRE_FALSE(bench.batcher->submit(lost));

  bench.lanes->take(0, 0).reset();

  REQUIRE(lost->refusal);
  CHECK(lost->refusal->kind == Refusal::Kind::kError);
  CHECK(bench.batcher->calls_in_flight() == 0);
}

TEST_CASE("a call that left is neither answered nor kept") {
  Bench bench(limits());
  auto leaver = call(1);
  const std::weak_ptr<ScriptedCall> watched = leaver;
  REQUIRE_FALSE(bench.batcher->submit(leaver));

  CHECK(bench.batcher->leave(*leaver) == Departure::kNeverRan);
  CHECK(bench.batcher->leave(*leaver) == Departure::kTooLate);
  CHECK(leaver->num_ends == 0);
  leaver.reset();
  CHECK(watched.expired());
  CHECK(bench.lanes->take(0, 0) == nullptr);
}

TEST_CASE("outputs with another number of rows reach nobody") {
  Bench bench(limits());
  const auto one = call(1), two = call(2);
  REQUIRE_FALSE(bench.batcher->submit(one));
  REQUIRE_FALSE(bench.batcher->submit(two));
  auto batch = bench.lanes->take(0, 0);
  Computed computed(*batch);
  computed.outputs[0].shape[0] = 1;

  CHECK_FALSE(bench.batcher->settle(batch, computed.outputs, 0.001));

  REQUIRE(batch != nullptr);
  CHECK(one->num_takes == 0);
  bench.batcher->fail(std::move(batch), nullptr, "MODEL_FAILED");
}

TEST_CASE("a buffer that an output looks at is not used for the next batch") {
  Bench bench(limits());
  const auto two_calls = [&] {
    REQUIRE_FALSE(bench.batcher->submit(call(1)));
    REQUIRE_FALSE(bench.batcher->submit(call(2)));
    return bench.lanes->take(0, 0);
  };
  auto batch = two_calls();
  const std::shared_ptr<std::byte> memory = batch->feeds[0].buffer->memory();
  Computed computed(*batch);
  computed.outputs[0].data = batch->feeds[0].data;  // the model hands back its input
  REQUIRE(bench.batcher->settle(batch, computed.outputs, 0.001));

  batch = two_calls();
  CHECK(batch->feeds[0].data != memory.get());
  const std::byte* const used = batch->feeds[0].data;
  bench.settle(std::move(batch));
  batch = two_calls();
  CHECK(batch->feeds[0].data == used);
  bench.settle(std::move(batch));
}

TEST_CASE("who waits for idleness hears of it with the last answer") {
  Bench bench(limits());
  int heard = 0;
  bench.batcher->when_idle([&] { ++heard; });
  CHECK(heard == 1);
  const auto waiting = call(1);
  REQUIRE_FALSE(bench.batcher->submit(waiting));
  bench.batcher->when_idle([&] { ++heard; });
  CHECK(heard == 1);

  bench.run_all();

  CHECK(heard == 2);
}

TEST_CASE("an abandoned call is refused, also where a slice of it is being taken") {
  Bench bench(limits(2), 2);
  class Slow : public ScriptedCall {
   public:
    using ScriptedCall::ScriptedCall;
    void take(const Share& share) noexcept override {
      during();
      ScriptedCall::take(share);
    }
    std::function<void()> during;
  };
  const auto sliced = std::make_shared<Slow>(1, 4);
  REQUIRE_FALSE(bench.batcher->submit(sliced));
  auto first = bench.lanes->take(0, 0);
  auto second = bench.lanes->take(1, 0);
  sliced->during = [&] {
    bench.batcher->close(nullptr, "INTERNAL", true);
    CHECK(sliced->num_ends == 0);  // not while it reads its rows
  };

  bench.settle(std::move(first));

  CHECK(sliced->num_ends == 1);
  REQUIRE(sliced->refusal);
  CHECK(sliced->refusal->kind == Refusal::Kind::kError);
  bench.settle(std::move(second));
  CHECK(sliced->num_takes == 1);
  CHECK(bench.batcher->calls_in_flight() == 0);
}

TEST_CASE("a call is answered at its deadline while every lane is busy") {
  const auto lanes = std::make_shared<LaneGroup>(1);
  const auto batcher =
      Batcher::open(limits(), true, lanes, std::make_shared<Meters>(std::vector<double>{1}, std::vector<double>{1}));
  REQUIRE_FALSE(batcher->submit(call(0)));
  auto running = lanes->take(0, 1);
  REQUIRE(running != nullptr);
  const double asked_at = steady_seconds();
  const auto waiting = call(1, 1, 0, asked_at + 0.05);
  REQUIRE_FALSE(batcher->submit(waiting));

  CHECK(waiting->has_ended_within(10));

  REQUIRE(waiting->refusal);
  CHECK(waiting->refusal->kind == Refusal::Kind::kExpired);
  CHECK(waiting->refusal->queue_seconds >= 0.05);
  CHECK(batcher->waiting_rows() == 0);
  batcher->fail(std::move(running), nullptr, "MODEL_FAILED");
  batcher->close(nullptr, "SERVER_DRAINING");
  lanes->close();
}

TEST_CASE("a lane that was rung for looks around") {
  const auto lanes = std::make_shared<LaneGroup>(1);
  std::thread ringer([&] { lanes->ring(0); });
  CHECK(lanes->take(0, 60) == nullptr);
  ringer.join();
}

}  // namespace headrace::batching
