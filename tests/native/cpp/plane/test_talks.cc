// Streams: bounded, in the order that each kind promises, and ended exactly once.
#include <doctest/doctest.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "messages.h"
#include "plane/data_plane.h"
#include "served_model.h"

namespace headrace::plane::testing {
namespace {

constexpr auto kPatience = std::chrono::seconds(30);
constexpr std::size_t kWindow = 4;

// A door that does what a test says.  Writes are told of at once, unless they are held.
class Line final : public Stream {
 public:
  Line(DataPlane& plane, Method method, const CallInfo& info = {}) : talk(plane.converse(method, info, *this)) {}

  void read() noexcept override {
    const std::lock_guard lock(mutex_);
    CHECK(!is_finished_);
    ++num_reads_;
    bell_.notify_all();
  }
  void write(Block block) noexcept override {
    bool is_held = false;
    {
      const std::lock_guard lock(mutex_);
      CHECK(!is_finished_);
      written_.push_back(text_of(block));
      is_held = are_writes_held_;
      bell_.notify_all();
    }
    if (!is_held) talk->has_written(true);
  }
  void finish(const Status& status) noexcept override {
    const std::lock_guard lock(mutex_);
    CHECK(!is_finished_);
    is_finished_ = true;
    status_ = status;
    bell_.notify_all();
  }
  std::shared_ptr<PassedCall> pass(Method method, Bytes, double, std::shared_ptr<Passage> passage) noexcept override {
    struct Nothing final : PassedCall {
      void cancel() noexcept override {}
    };
    const std::lock_guard lock(mutex_);
    CHECK(!is_finished_);
    passed_.emplace_back(method, std::move(passage));
    bell_.notify_all();
    return std::make_shared<Nothing>();
  }

  // What the caller does.

  void send(std::string request) {
    wait_until([this] { return num_reads_ > num_sent_; });
    ++num_sent_;
    talk->has_read(message(std::move(request)));
  }
  void send_no_more() {
    wait_until([this] { return num_reads_ > num_sent_; });
    ++num_sent_;
    talk->has_read(std::nullopt);
  }
  void hold_writes() { are_writes_held_ = true; }

  std::vector<std::string> wait_for(std::size_t count) {
    wait_until([&] { return written_.size() >= count; });
    const std::lock_guard lock(mutex_);
    return written_;
  }
  Status wait_for_end() {
    wait_until([this] { return is_finished_; });
    return status_;
  }
  std::shared_ptr<Passage> wait_for_passed() {
    wait_until([this] { return !passed_.empty(); });
    const std::lock_guard lock(mutex_);
    const std::shared_ptr<Passage> passage = passed_.front().second;
    passed_.pop_front();
    return passage;
  }
  bool is_asked_for_more() {
    const std::lock_guard lock(mutex_);
    return num_reads_ > num_sent_;
  }
  bool is_finished() {
    const std::lock_guard lock(mutex_);
    return is_finished_;
  }

 private:
  template <class Is>
  void wait_until(const Is& is) {
    std::unique_lock lock(mutex_);
    REQUIRE(bell_.wait_for(lock, kPatience, is));
  }

  std::mutex mutex_;
  std::condition_variable bell_;
  bool are_writes_held_ = false;
  bool is_finished_ = false;
  int num_reads_ = 0;
  int num_sent_ = 0;
  std::vector<std::string> written_;
  std::deque<std::pair<Method, std::shared_ptr<Passage>>> passed_;
  Status status_;

 public:
  const std::shared_ptr<Conversation> talk;
};

struct Served {
  ServedModel model;
  DataPlane plane{{0.001, 1.0}, kWindow, &told};
  Served() { plane.turn(model.routes()); }
};

// Of a PredictStreamResponse: the id, the values, the reason of the error.
std::string id_in(const std::string& answer) { return find(answer, {1}); }
std::vector<float> values_in(const std::string& answer) { return floats_of(find(answer, {2, 2, 2, 3})); }
std::string problem_in(const std::string& answer) { return find(answer, {3, 2}); }

std::string answer_to(const std::string& id, const std::vector<std::string>& answers) {
  for (const std::string& answer : answers) {
    if (id_in(answer) == id) return answer;
  }
  return {};
}

}  // namespace

TEST_CASE("a stream answers each request with its id, and ends when the caller has sent all") {
  Served served;
  Line line(served.plane, Method::kPredictStream);
  line.talk->start();

  line.send(stream_request("a", predict_request({1, 2})));
  line.send(stream_request("b", predict_request({3, 4})));
  line.send_no_more();

  CHECK(line.wait_for_end().is_ok());
  const std::vector<std::string> answers = line.wait_for(2);
  REQUIRE(answers.size() == 2);
  for (const std::string& answer : answers) {
    const bool is_a = id_in(answer) == "a";
    CHECK(values_in(answer) == (is_a ? std::vector<float>{2, 4} : std::vector<float>{6, 8}));
  }
  CHECK(served.plane.meters().read(Method::kPredictStream).by_code[0] == 1);
  CHECK(served.plane.meters().in_flight() == 0);
}

TEST_CASE("no more requests are taken than the window allows until an answer was taken") {
  Served served;
  Line line(served.plane, Method::kPredictStream);
  line.hold_writes();
  line.talk->start();
  for (std::size_t i = 0; i < kWindow; ++i) line.send(stream_request(std::to_string(i), predict_request({1, 2})));

  line.wait_for(1);
  CHECK(!line.is_asked_for_more());
  line.talk->has_written(true);

  line.send(stream_request("next", predict_request({1, 2})));
  for (std::size_t i = 1; i < kWindow + 1; ++i) {
    line.wait_for(i + 1);
    line.talk->has_written(true);
  }
  line.send_no_more();
  CHECK(line.wait_for_end().is_ok());
}

TEST_CASE("an id that is under way is refused, and can be used again after its answer") {
  Served served;
  served.model.hold();
  Line line(served.plane, Method::kPredictStream);
  line.talk->start();

  line.send(stream_request("a", predict_request({1, 2})));
  line.send(stream_request("a", predict_request({3, 4})));
  const std::vector<std::string> refused = line.wait_for(1);
  served.model.let_go();
  line.wait_for(2);
  line.send(stream_request("a", predict_request({5, 6})));
  const std::vector<std::string> answers = line.wait_for(3);

  CHECK(problem_in(refused[0]) == "id: 'a' is the id of a request that is still under way");
  CHECK(values_in(answers[1]) == std::vector<float>{2, 4});
  CHECK(values_in(answers[2]) == std::vector<float>{10, 12});
  line.send_no_more();
  CHECK(line.wait_for_end().is_ok());
}

TEST_CASE("a request that takes longer than it may is told so, and the stream goes on") {
  Served served;
  served.model.hold();
  Line line(served.plane, Method::kPredictStream);
  line.talk->start();
  const std::string timeout = field(3, number_field(2, 20'000'000));

  line.send(stream_request("running", predict_request({1, 2})));
  served.model.wait_until_held();
  line.send(stream_request("late", predict_request({1, 2})) + timeout);
  const std::vector<std::string> answers = line.wait_for(1);
  served.model.let_go();
  line.send(stream_request("wrong", predict_request({1, 2})) + field(3, number_field(1, 0)));

  CHECK(id_in(answers[0]) == "late");
  CHECK(problem_in(answers[0]) == "the request took longer than it may");
  CHECK(problem_in(answer_to("wrong", line.wait_for(3))) == "timeout: must be above 0");
  line.send_no_more();
  CHECK(line.wait_for_end().is_ok());
}

TEST_CASE("a request that is being run when its time is over is told so at once, and only that") {
  Served served;
  served.model.hold();
  Line line(served.plane, Method::kPredictStream);
  line.talk->start();
  const std::string timeout = field(3, number_field(1, 3));  // long enough to begin on any machine

  line.send(stream_request("running", predict_request({1, 2})) + timeout);
  served.model.wait_until_held();
  const std::vector<std::string> told = line.wait_for(1);
  line.send(stream_request("running", predict_request({3, 4})));
  served.model.let_go();

  CHECK(id_in(told[0]) == "running");
  CHECK(problem_in(told[0]) == "the request took longer than it may");
  CHECK(values_in(line.wait_for(2)[1]) == std::vector<float>{6, 8});
  line.send_no_more();
  CHECK(line.wait_for_end().is_ok());
}

TEST_CASE("requests with times of their own are told in the order of those times") {
  Served served;
  served.model.hold();
  Line line(served.plane, Method::kPredictStream);
  line.talk->start();
  const auto timeout = [](std::uint64_t millis) { return field(3, number_field(2, millis * 1'000'000)); };

  line.send(stream_request("first", predict_request({1, 2})));
  served.model.wait_until_held();
  line.send(stream_request("late", predict_request({1, 2})) + timeout(2000));
  line.send(stream_request("early", predict_request({1, 2})) + timeout(30));
  const std::vector<std::string> answers = line.wait_for(2);
  served.model.let_go();

  CHECK(id_in(answers[0]) == "early");
  CHECK(id_in(answers[1]) == "late");
  line.wait_for(3);
  line.send_no_more();
  CHECK(line.wait_for_end().is_ok());
}

TEST_CASE("what is passed on comes back into the stream") {
  Served served;
  Line line(served.plane, Method::kPredictStream);
  line.talk->start();

  line.send(stream_request("a", predict_request({1, 2}, "models/other")));
  line.wait_for_passed()->answered(message("answer"));
  line.send(stream_request("b", predict_request({1, 2}, "models/other")));
  line.wait_for_passed()->failed({5, "unknown", {}});
  const std::vector<std::string> answers = line.wait_for(2);

  CHECK(find(answers[0], {2}) == "answer");
  CHECK(id_in(answers[1]) == "b");
  CHECK(problem_in(answers[1]) == "unknown");
  line.send_no_more();
  CHECK(line.wait_for_end().is_ok());
}

TEST_CASE("answers of the other protocol come in the order of the requests") {
  Served served;
  Line line(served.plane, Method::kModelStreamInfer);
  line.talk->start();

  line.send(infer_request({1, 2}, "first", "other"));
  const std::shared_ptr<Passage> passage = line.wait_for_passed();
  line.send(infer_request({3, 4}, "second"));
  line.send(infer_request({5, 6}, "third"));
  passage->failed({5, "unknown", {}});
  const std::vector<std::string> answers = line.wait_for(3);

  CHECK(find(answers[0], {1}) == "unknown");
  CHECK(find(answers[0], {2, 3}) == "first");
  CHECK(find(answers[1], {2, 3}) == "second");
  CHECK(floats_of(find(answers[2], {2, 6})) == std::vector<float>{10, 12});
  line.send_no_more();
  CHECK(line.wait_for_end().is_ok());
}

TEST_CASE("bytes that are no message end the stream after what is under way is answered") {
  Served served;
  served.model.hold();
  Line line(served.plane, Method::kPredictStream);
  line.talk->start();

  line.send(stream_request("a", predict_request({1, 2})));
  line.send("\x0a\x7f");
  CHECK(!line.is_finished());
  served.model.let_go();

  CHECK(line.wait_for_end().code == static_cast<int>(Code::kInvalidArgument));
  CHECK(values_in(line.wait_for(1)[0]) == std::vector<float>{2, 4});
}

TEST_CASE("a server that closes answers what is under way, and ends the stream") {
  Served served;
  served.model.hold();
  Line line(served.plane, Method::kPredictStream);
  line.talk->start();
  line.send(stream_request("a", predict_request({1, 2})));

  served.plane.drain();
  CHECK(!line.is_finished());
  served.model.let_go();

  CHECK(line.wait_for_end().message == "the server is shutting down");
  CHECK(values_in(line.wait_for(1)[0]) == std::vector<float>{2, 4});
  Line late(served.plane, Method::kModelStreamInfer);
  late.talk->start();
  CHECK(late.wait_for_end().code == static_cast<int>(Code::kUnavailable));
}

TEST_CASE("a caller who goes in the middle ends everything of his, once") {
  Served served;
  for (const Method method : {Method::kPredictStream, Method::kModelStreamInfer}) {
    served.model.hold();
    Line line(served.plane, method);
    line.talk->start();
    for (std::size_t i = 0; i + 1 < kWindow; ++i) {
      line.send(method == Method::kPredictStream ? stream_request(std::to_string(i), predict_request({1, 2}))
                                                 : infer_request({1, 2}));
    }

    line.talk->cancel();
    CHECK(line.wait_for_end().code == static_cast<int>(Code::kCancelled));
    line.talk->has_read(std::nullopt);
    line.talk->cancel();
    served.model.let_go();
  }
  CHECK(served.plane.meters().in_flight() == 0);
}

TEST_CASE("a caller who goes while something is written to him ends the stream when that is told") {
  Served served;
  Line line(served.plane, Method::kPredictStream);
  line.hold_writes();
  line.talk->start();
  line.send(stream_request("a", predict_request({1, 2})));
  line.wait_for(1);

  line.talk->cancel();
  CHECK(!line.is_finished());
  line.talk->has_written(false);

  CHECK(line.wait_for_end().code == static_cast<int>(Code::kCancelled));
}

TEST_CASE("a passed part whose stream has gone is told to nobody") {
  Served served;
  Line line(served.plane, Method::kPredictStream);
  line.talk->start();
  line.send(stream_request("a", predict_request({1, 2}, "models/other")));
  const std::shared_ptr<Passage> passage = line.wait_for_passed();

  line.talk->cancel();
  line.wait_for_end();
  passage->answered(message("answer"));
}

}  // namespace headrace::plane::testing
