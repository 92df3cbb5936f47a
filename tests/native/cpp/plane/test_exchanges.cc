// Unary calls: each is answered, refused or passed on, exactly once.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "batching/clock.h"
#include "messages.h"
#include "plane/data_plane.h"
#include "served_model.h"

namespace headrace::plane::testing {
namespace {

constexpr auto kPatience = std::chrono::seconds(30);

struct Ending {
  enum class Kind { kAnswered, kFailed, kPassed } kind = Kind::kAnswered;
  std::string response;
  Status status;
};

class Caller final : public Responder {
 public:
  Caller(DataPlane& plane, Method method, const CallInfo& info = {}) : exchange(plane.open(method, info, *this)) {}

  void respond(Block response) noexcept override { end({Ending::Kind::kAnswered, text_of(response), {}}); }
  void fail(const Status& status) noexcept override { end({Ending::Kind::kFailed, {}, status}); }
  void pass() noexcept override { end({Ending::Kind::kPassed, {}, {}}); }

  Ending wait() {
    REQUIRE(ending_.wait_for(kPatience) == std::future_status::ready);
    return ending_.get();
  }
  Ending ask(std::string request) {
    exchange->start(message(std::move(request)));
    return wait();
  }

  std::atomic<int> num_endings{0};

 private:
  void end(Ending ending) {
    ++num_endings;
    promise_.set_value(std::move(ending));
  }

  std::promise<Ending> promise_;
  std::future<Ending> ending_ = promise_.get_future();

 public:
  const std::shared_ptr<Exchange> exchange;
};

struct Served {
  ServedModel model;
  DataPlane plane{{0.001, 1.0}, 4, &told};

  explicit Served(std::int64_t max_waiting_rows = 1000) : model(2, "models/m/versions/1", max_waiting_rows) {
    plane.turn(model.routes());
  }

  std::uint64_t passed(Method method, PassReason reason) {
    return plane.meters().read(method).passed[static_cast<std::size_t>(reason)];
  }
};

CallInfo due_in(double seconds) {
  CallInfo info;
  info.deadline = batching::steady_seconds() + seconds;
  return info;
}

}  // namespace

TEST_CASE("a prediction is answered with its own rows, and by the version that answered") {
  Served served;

  const Ending predicted_one = Caller(served.plane, Method::kPredict).ask(predict_request({1, 2, 3, 4}));
  const Ending inferred = Caller(served.plane, Method::kModelInfer).ask(infer_request({5, 6}, "7"));

  REQUIRE(predicted_one.kind == Ending::Kind::kAnswered);
  CHECK(predicted(predicted_one.response) == std::vector<float>{2, 4, 6, 8});
  CHECK(find(predicted_one.response, {1}) == "models/m/versions/1");
  REQUIRE(inferred.kind == Ending::Kind::kAnswered);
  CHECK(floats_of(find(inferred.response, {6})) == std::vector<float>{10, 12});
  CHECK(find(inferred.response, {3}) == "7");
  CHECK(served.plane.meters().read(Method::kPredict).by_code[0] == 1);
  CHECK(served.plane.meters().in_flight() == 0);
}

TEST_CASE("a message that comes in single bytes is answered alike") {
  Served served;
  Caller caller(served.plane, Method::kPredict);

  caller.exchange->start(message(predict_request({1, 2, 3, 4}), 1));

  CHECK(predicted(caller.wait().response) == std::vector<float>{2, 4, 6, 8});
}

TEST_CASE("a call with more rows than a batch may have is put together in order") {
  Served served;
  std::vector<float> values;
  for (int i = 0; i < 100; ++i) values.push_back(static_cast<float>(i));

  const std::vector<float> doubled =
      predicted(Caller(served.plane, Method::kPredict).ask(predict_request(values)).response);

  REQUIRE(doubled.size() == values.size());
  for (std::size_t i = 0; i < values.size(); ++i) CHECK(doubled[i] == 2 * values[i]);
}

TEST_CASE("what is not answered here is passed on, and counted by its reason") {
  Served served;
  const auto ask = [&](const std::string& request) {
    return Caller(served.plane, Method::kPredict).ask(request).kind == Ending::Kind::kPassed;
  };

  CHECK(ask("\x0a\x7f"));
  CHECK(ask(predict_request({1, 2}, "models/other")));
  CHECK(ask(predict_request({1, 2}, "models/m/versions/2")));
  CHECK(ask(predict_request({1, std::numeric_limits<float>::quiet_NaN()})));
  CHECK(ask(predict_request({1, 2}) + field(3, "z")));
  served.plane.drain();
  CHECK(ask(predict_request({1, 2})));

  CHECK(served.passed(Method::kPredict, PassReason::kRequest) == 1);
  CHECK(served.passed(Method::kPredict, PassReason::kName) == 2);
  CHECK(served.passed(Method::kPredict, PassReason::kSignature) == 2);
  CHECK(served.passed(Method::kPredict, PassReason::kDraining) == 1);
  CHECK(served.plane.meters().in_flight() == 0);
}

TEST_CASE("a call that waits for a version which leaves is passed on") {
  Served served;
  served.model.hold();
  Caller running(served.plane, Method::kPredict);
  Caller waiting(served.plane, Method::kPredict);
  running.exchange->start(message(predict_request({1, 2})));
  served.model.wait_until_held();
  waiting.exchange->start(message(predict_request({3, 4})));

  served.model.batcher().close(nullptr, "SERVER_DRAINING");
  served.model.let_go();

  CHECK(waiting.wait().kind == Ending::Kind::kPassed);
  CHECK(predicted(running.wait().response) == std::vector<float>{2, 4});
  CHECK(Caller(served.plane, Method::kPredict).ask(predict_request({5, 6})).kind == Ending::Kind::kPassed);
  CHECK(served.passed(Method::kPredict, PassReason::kLeft) == 2);
}

TEST_CASE("a call under way finishes by the route that it has found") {
  Served served;
  ServedModel next(10, "models/m/versions/2");
  served.model.hold();
  Caller before(served.plane, Method::kPredict);
  before.exchange->start(message(predict_request({1, 2})));
  served.model.wait_until_held();

  served.plane.turn(next.routes());
  const Ending after = Caller(served.plane, Method::kPredict).ask(predict_request({1, 2}));
  served.model.let_go();

  CHECK(predicted(after.response) == std::vector<float>{10, 20});
  CHECK(find(after.response, {1}) == "models/m/versions/2");
  CHECK(predicted(before.wait().response) == std::vector<float>{2, 4});
}

TEST_CASE("too much that waits is refused with a time to try again") {
  Served served(1);
  served.model.hold();
  Caller running(served.plane, Method::kPredict);
  Caller waiting(served.plane, Method::kPredict);
  running.exchange->start(message(predict_request({1, 2})));
  served.model.wait_until_held();
  waiting.exchange->start(message(predict_request({1, 2})));

  const Ending refused = Caller(served.plane, Method::kPredict).ask(predict_request({1, 2}));
  served.model.let_go();

  REQUIRE(refused.kind == Ending::Kind::kFailed);
  CHECK(refused.status.code == static_cast<int>(Code::kResourceExhausted));
  CHECK(refused.status.message == "1 rows already wait for models/m/versions/1 (limit 1)");
  CHECK(waiting.wait().kind == Ending::Kind::kAnswered);
  CHECK(running.wait().kind == Ending::Kind::kAnswered);
}

TEST_CASE("a call is refused at its deadline while the lane is busy") {
  Served served;
  served.model.hold();
  Caller running(served.plane, Method::kPredict);
  running.exchange->start(message(predict_request({1, 2})));
  served.model.wait_until_held();

  const Ending late = Caller(served.plane, Method::kPredict, due_in(0.02)).ask(predict_request({1, 2}));
  const std::string timeout = field(4, field(1, "timeout") + field(2, number_field(2, 20'000)));
  const Ending slow = Caller(served.plane, Method::kModelInfer).ask(infer_request({1, 2}) + timeout);
  served.model.let_go();

  CHECK(late.status.code == static_cast<int>(Code::kDeadlineExceeded));
  CHECK(slow.status.code == static_cast<int>(Code::kDeadlineExceeded));
  CHECK(running.wait().kind == Ending::Kind::kAnswered);
}

TEST_CASE("what a model raises is told as whoever ran it says") {
  Served served;
  served.model.break_down();

  const Ending failed = Caller(served.plane, Method::kPredict).ask(predict_request({1, 2}));

  CHECK(failed.status.code == static_cast<int>(Code::kInternal));
  CHECK(failed.status.message == "broken");
}

TEST_CASE("a caller who leaves is told so once, whether his call waits or runs") {
  Served served;
  served.model.hold();
  Caller running(served.plane, Method::kPredict);
  Caller waiting(served.plane, Method::kPredict);
  running.exchange->start(message(predict_request({1, 2})));
  served.model.wait_until_held();
  waiting.exchange->start(message(predict_request({1, 2})));

  for (Caller* caller : {&running, &waiting}) {
    caller->exchange->cancel();
    CHECK(caller->wait().status.code == static_cast<int>(Code::kCancelled));
    caller->exchange->cancel();
  }
  served.model.let_go();

  CHECK(predicted(Caller(served.plane, Method::kPredict).ask(predict_request({1, 2})).response) ==
        std::vector<float>{2, 4});
  CHECK(running.num_endings == 1);
  CHECK(waiting.num_endings == 1);
  CHECK(served.plane.meters().read(Method::kPredict).by_code[1] == 2);
}

TEST_CASE("questions after the server and its models are answered from what is known") {
  Served served;
  const std::string about_m = field(1, "m");

  CHECK(Caller(served.plane, Method::kServerLive).ask("").response == "\x08\x01");
  CHECK(Caller(served.plane, Method::kServerReady).ask("").response.empty());
  CHECK(Caller(served.plane, Method::kModelReady).ask(about_m).response.empty());
  served.plane.set_serving(true);
  CHECK(Caller(served.plane, Method::kServerReady).ask("").response == "\x08\x01");
  CHECK(Caller(served.plane, Method::kModelReady).ask(about_m).response == "\x08\x01");
  CHECK(Caller(served.plane, Method::kModelMetadata).ask(about_m + field(2, "1")).response == "metadata");
  CHECK(Caller(served.plane, Method::kModelReady).ask(field(1, "other")).kind == Ending::Kind::kPassed);
}

TEST_CASE("the id of a call is the caller's if it is one, else made up") {
  Served served;
  CallInfo info;
  info.request_id = "mine";
  CHECK(Caller(served.plane, Method::kServerLive, info).exchange->request_id() == "mine");
  info.request_id = "bad\n";
  CHECK(Caller(served.plane, Method::kServerLive, info).exchange->request_id().size() == 16);
}

TEST_CASE("whoever comes, leaves and changes routes at the same time: every call ends once") {
  Served served;
  ServedModel other(10, "models/m/versions/2");
  std::atomic<bool> is_over{false};
  std::thread turning([&] {
    for (int i = 0; !is_over; ++i) served.plane.turn(i % 2 == 0 ? other.routes() : served.model.routes());
  });
  std::atomic<int> num_wrong{0};
  std::vector<std::thread> callers;
  for (int thread = 0; thread < 3; ++thread) {
    callers.emplace_back([&, thread] {
      for (int i = 0; i < 300; ++i) {
        Caller caller(served.plane, Method::kPredict, due_in(i % 5 == 0 ? 1e-4 : 30));
        const auto value = static_cast<float>(thread * 1000 + i);
        caller.exchange->start(message(predict_request({value, value})));
        if (i % 3 == 0) caller.exchange->cancel();
        const Ending ending = caller.wait();
        if (ending.kind != Ending::Kind::kAnswered) continue;
        const float factor = find(ending.response, {1}) == "models/m/versions/1" ? 2 : 10;
        if (predicted(ending.response) != std::vector<float>{factor * value, factor * value}) ++num_wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  is_over = true;
  turning.join();

  CHECK(num_wrong == 0);
  CHECK(served.plane.meters().in_flight() == 0);
}

}  // namespace headrace::plane::testing
