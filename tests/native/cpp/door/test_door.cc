// The door in front of a scripted plane and a plain server, called by a C++ client.
#include "door/door.h"

#include <doctest/doctest.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "door/plain_server.h"
#include "door/reactors.h"
#include "door/scripted_plane.h"
#include "door/slices.h"

namespace headrace::door {
namespace {

using namespace std::chrono_literals;
using grpc::ByteBuffer;

constexpr const char* kPredict = "/headrace.inference.v1.InferenceService/Predict";
constexpr const char* kPredictStream = "/headrace.inference.v1.InferenceService/PredictStream";

ByteBuffer message(const std::string& text) { return message_of(plane::block_of(text)); }
std::string text(const ByteBuffer& content) { return plane::text_of(bytes_of(content)); }

bool wait_until(const std::function<bool()>& is_so) {
  for (int tries = 0; tries < 6000; ++tries) {
    if (is_so()) return true;
    std::this_thread::sleep_for(10ms);
  }
  return false;
}

constexpr std::int64_t kMaxMessageBytes = 1 << 20;

struct Ending {
  grpc::Status status;
  std::string answer;
  std::multimap<std::string, std::string> trailers;
};

// Everything between a caller and a plain server.
class Street {
 public:
  explicit Street(MakeReactor make = [](auto&) { return new EchoEach; }, std::int64_t max_concurrent_calls = 4096,
                  int num_threads = 1)
      : socket_("unix:/tmp/headrace-tests-" + std::to_string(getpid()) + "-" + std::to_string(++count_)),
        server_(socket_, std::move(make)),
        plane_(std::make_shared<plane::ScriptedPlane>()),
        door_(options(socket_, max_concurrent_calls, num_threads), plane_) {
    REQUIRE(door_.bind());
    door_.open();
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = std::make_unique<grpc::GenericStub>(grpc::CreateCustomChannel(
        "127.0.0.1:" + std::to_string(door_.port()), grpc::InsecureChannelCredentials(), arguments));
  }

  plane::ScriptedPlane& plane() { return *plane_; }
  Door& door() { return door_; }
  grpc::GenericStub& stub() { return *stub_; }

  Ending call(const std::string& method, const std::string& request, std::chrono::milliseconds within = 60s,
              const std::function<void(grpc::ClientContext&)>& started = {}) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + within);
    context.AddMetadata("x-request-id", "an-id");
    const ByteBuffer sent = message(request);
    ByteBuffer received;
    std::mutex mutex;
    std::condition_variable bell;
    bool is_over = false;
    Ending ending;
    stub_->UnaryCall(&context, method, {}, &sent, &received, [&](grpc::Status status) {
      const std::lock_guard<std::mutex> lock(mutex);
      ending.status = std::move(status);
      is_over = true;
      bell.notify_one();
    });
    if (started) started(context);
    std::unique_lock<std::mutex> lock(mutex);
    bell.wait(lock, [&] { return is_over; });
    if (ending.status.ok()) ending.answer = text(received);
    for (const auto& [key, value] : context.GetServerTrailingMetadata()) {
      ending.trailers.emplace(std::string(key.data(), key.size()), std::string(value.data(), value.size()));
    }
    return ending;
  }

 private:
  static Options options(const std::string& socket, std::int64_t max_concurrent_calls, int num_threads) {
    Options chosen;
    chosen.address = "127.0.0.1:0";
    chosen.complete_server = socket;
    chosen.max_concurrent_calls = max_concurrent_calls;
    chosen.max_message_bytes = kMaxMessageBytes;
    chosen.num_threads = num_threads;
    chosen.gone = {14, "gone", "details"};
    chosen.too_many_calls = {8, "too many calls", "details"};
    chosen.too_much_metadata = {3, "too much metadata", "details"};
    chosen.too_large = {3, "too large", "details"};
    return chosen;
  }

  static std::atomic<int> count_;
  const std::string socket_;
  PlainServer server_;
  const std::shared_ptr<plane::ScriptedPlane> plane_;
  Door door_;
  std::unique_ptr<grpc::GenericStub> stub_;
};

std::atomic<int> Street::count_{0};

// A stream that sends each word after the answer to the one before.
class Talk final : public grpc::ClientBidiReactor<ByteBuffer, ByteBuffer> {
 public:
  Talk(grpc::GenericStub& stub, std::vector<std::string> words) : words_(std::move(words)) {
    stub.PrepareBidiStreamingCall(&context_, kPredictStream, {}, this);
    StartCall();
    next();
  }
  void OnWriteDone(bool ok) override {
    if (ok) StartRead(&received_);
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    answers.push_back(text(received_));
    next();
  }
  void OnDone(const grpc::Status& status) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    status_ = status;
    is_over_ = true;
    bell_.notify_one();
  }
  grpc::Status wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    bell_.wait(lock, [this] { return is_over_; });
    return status_;
  }

  std::vector<std::string> answers;

 private:
  void next() {
    if (answers.size() < words_.size()) {
      sent_ = message(words_[answers.size()]);
      StartWrite(&sent_);
    } else {
      StartWritesDone();
    }
  }

  const std::vector<std::string> words_;
  grpc::ClientContext context_;
  ByteBuffer sent_;
  ByteBuffer received_;
  std::mutex mutex_;
  std::condition_variable bell_;
  bool is_over_ = false;
  grpc::Status status_;
};

TEST_CASE("the plane answers from the thread of the call, or from another") {
  Street street;
  for (const std::string request : {"", "echo", "later"}) {
    const Ending ending = street.call(kPredict, request);
    CHECK(ending.status.ok());
    CHECK(ending.answer == request);
    CHECK(ending.trailers.find("x-request-id")->second == "an-id");
  }
}

TEST_CASE("a failure keeps its code, its words and its details") {
  Street street;
  const Ending ending = street.call(kPredict, "fail");
  CHECK(ending.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(ending.status.error_message() == "full");
  CHECK(ending.status.error_details() == "\x08\x08");
  CHECK(ending.trailers.find("x-request-id")->second == "an-id");
}

TEST_CASE("what the plane passes on is answered by the complete server") {
  Street street;
  CHECK(street.call(kPredict, "echo").answer == "echo");
  CHECK(wait_until([&] { return street.plane().num_sent == 1; }));
  for (int times = 0; times < 50; ++times) {
    CHECK(street.call(kPredict, "pass this").answer == "pass this");
    CHECK(street.call("/any.Other/Method", "echo").answer == "echo");
  }
  // The plane is told of what it has answered itself.
  CHECK(street.plane().num_sent == 1);
}

TEST_CASE("what the complete server refuses is refused in the same words") {
  Street street([](auto&) { return new Refuse({grpc::StatusCode::NOT_FOUND, "nobody knows", "details"}); });
  const Ending ending = street.call(kPredict, "pass this");
  CHECK(ending.status.error_code() == grpc::StatusCode::NOT_FOUND);
  CHECK(ending.status.error_message() == "nobody knows");
  CHECK(ending.status.error_details() == "details");
  CHECK(ending.trailers.count("grpc-status-details-bin") == 1);
}

TEST_CASE("the plane hears of a caller who leaves, and of a deadline") {
  Street street;
  // On a busy machine the first ones may not get as far as the plane in their time.
  CHECK(wait_until([&, within = 50ms]() mutable {
    within = std::min<std::chrono::milliseconds>(2 * within, 5s);
    CHECK(street.call(kPredict, "wait", within).status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
    return street.plane().num_cancelled > 0;
  }));
  street.call(kPredict, "wait", 60s, [](grpc::ClientContext& context) { context.TryCancel(); });
  CHECK(wait_until([&] { return street.door().calls_in_flight() == 0; }));
}

TEST_CASE("a deadline reaches the plane on the steady clock") {
  Street street;
  street.call(kPredict, "echo", 500s);
  const double now = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  CHECK(street.plane().last_deadline > now + 300);
  CHECK(street.plane().last_deadline < now + 520);  // gRPC rounds up
}

TEST_CASE("a stream is answered by the plane, and where it passes on, by the complete server") {
  Street street;
  Talk talk(street.stub(), {"one", "", "pass two", std::string(1 << 20, 'e')});
  CHECK(talk.wait().ok());
  CHECK(talk.answers == std::vector<std::string>{"one", "", "pass two", std::string(1 << 20, 'e')});
}

TEST_CASE("a part that the complete server refuses is an answer of the stream") {
  Street street([](auto&) { return new Refuse({grpc::StatusCode::NOT_FOUND, "nobody knows"}); });
  Talk talk(street.stub(), {"pass one", "two"});
  CHECK(talk.wait().ok());
  CHECK(talk.answers == std::vector<std::string>{"failed 5 nobody knows", "two"});
}

TEST_CASE("many callers at a time are each told their own, with one thread for all or several") {
  int num_threads = 1;
  SUBCASE("one") {}
  SUBCASE("several") { num_threads = 3; }
  Street street([](auto&) { return new EchoEach; }, 4096, num_threads);
  std::vector<std::thread> callers;
  std::atomic<int> num_right{0};
  for (int caller = 0; caller < 8; ++caller) {
    callers.emplace_back([&, caller] {
      const char kinds[] = {'e', 'l', 'p'};
      for (int index = 0; index < 60; ++index) {
        const std::string request = kinds[index % 3] + std::to_string(caller) + "-" + std::to_string(index);
        const Ending ending = street.call(kPredict, request);
        CHECK_MESSAGE(ending.answer == request, ending.status.error_message());
        if (ending.answer == request) ++num_right;
        if (index % 7 == 0) street.call(kPredict, "wait", 1ms);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(num_right == 8 * 60);
  CHECK(wait_until([&] { return street.door().calls_in_flight() == 0; }));
}

TEST_CASE("a message may be as large as the limit and no larger") {
  Street street;
  for (const char* method : {kPredict, "/any.Other/Method"}) {
    CHECK(street.call(method, std::string(kMaxMessageBytes, 'e')).status.ok());
    const Ending refused = street.call(method, std::string(kMaxMessageBytes + 1, 'e'));
    CHECK(refused.status.error_message() == "too large");
    CHECK(refused.status.error_details() == "details");
    CHECK(refused.trailers.find("x-request-id")->second == "an-id");
  }
  CHECK(wait_until([&] { return street.door().calls_in_flight() == 0; }));
}

TEST_CASE("more calls than there may be are refused, and the others go on") {
  Street street([](auto&) { return new EchoEach; }, 64);
  std::vector<std::thread> callers;
  std::mutex mutex;
  std::vector<grpc::ClientContext*> waiting;
  for (int caller = 0; caller < 64; ++caller) {
    callers.emplace_back([&] {
      street.call(kPredict, "wait", 60s, [&](grpc::ClientContext& context) {
        const std::lock_guard lock(mutex);
        waiting.push_back(&context);
      });
    });
  }
  REQUIRE(wait_until([&] { return street.door().calls_in_flight() == 64; }));
  for (const char* method : {kPredict, "/any.Other/Method"}) {
    const Ending refused = street.call(method, "echo");
    CHECK(refused.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
    CHECK(refused.status.error_message() == "too many calls");
    CHECK(refused.status.error_details() == "details");
    CHECK(refused.trailers.find("x-request-id")->second == "an-id");
  }
  {
    const std::lock_guard lock(mutex);
    for (grpc::ClientContext* context : waiting) context->TryCancel();
  }
  for (std::thread& caller : callers) caller.join();
  REQUIRE(wait_until([&] { return street.door().calls_in_flight() == 0; }));
  CHECK(street.call(kPredict, "echo").answer == "echo");
}

TEST_CASE("closing waits for what is under way, and hurrying does not") {
  Street street;
  std::thread caller([&] { CHECK(!street.call(kPredict, "wait").status.ok()); });
  REQUIRE(wait_until([&] { return street.door().calls_in_flight() == 1; }));
  std::atomic<bool> is_closed{false};
  std::thread closer([&] {
    street.door().close(60);
    is_closed = true;
  });
  CHECK(wait_until([&] {
    street.door().hurry();
    return is_closed.load();
  }));
  closer.join();
  caller.join();
  CHECK(street.door().calls_in_flight() == 0);
}

TEST_CASE("whoever comes again and again while the door closes is sent away with the reason") {
  Street street;
  std::thread slow([&] { CHECK(!street.call(kPredict, "wait").status.ok()); });
  REQUIRE(wait_until([&] { return street.door().calls_in_flight() == 1; }));
  std::vector<std::thread> callers;
  std::atomic<int> num_answered{0}, num_sent_away{0};
  for (int caller = 0; caller < 16; ++caller) {
    callers.emplace_back([&] {
      Ending ending;
      do {
        ending = street.call(kPredict, "echo");
        if (ending.status.ok()) ++num_answered;
      } while (ending.status.ok());
      CHECK_MESSAGE(ending.status.error_message() == "gone", ending.status.error_message());
      CHECK(ending.status.error_details() == "details");
      CHECK(ending.trailers.find("x-request-id")->second == "an-id");
      ++num_sent_away;
    });
  }
  REQUIRE(wait_until([&] { return num_answered > 500; }));
  std::thread closer([&] { street.door().close(60); });
  CHECK(wait_until([&] { return num_sent_away == 16; }));
  for (std::thread& caller : callers) caller.join();
  CHECK(wait_until([&] { return street.door().calls_in_flight() == 1; }));
  street.door().hurry();
  slow.join();
  closer.join();
}

}  // namespace
}  // namespace headrace::door
