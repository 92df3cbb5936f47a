// Readers of one history at the door: what each is told, and what the complete server is asked for it.
#include "door/relay.h"

#include <doctest/doctest.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "door/door.h"
#include "door/history.h"
#include "door/plain_server.h"

namespace headrace::door {
namespace {

using namespace std::chrono_literals;
using Words = std::vector<std::string>;

bool wait_until(const std::function<bool()>& is_so) {
  for (int tries = 0; tries < 3000; ++tries) {
    if (is_so()) return true;
    std::this_thread::sleep_for(10ms);
  }
  return false;
}

// One who follows the history through the door.
class Follower final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Follower(grpc::GenericStub& stub, bool reads) : request_(message_of(plane::block_of("from the beginning"))) {
    stub.PrepareBidiStreamingCall(&context_, "/a.Service/Follow", {}, this);
    StartWriteLast(&request_, {});
    AddHold();
    if (reads) begin_to_read();
    StartCall();
  }
  ~Follower() override {
    context_.TryCancel();
    begin_to_read();
    std::unique_lock<std::mutex> lock(mutex_);
    bell_.wait(lock, [this] { return is_over_; });
  }

  void begin_to_read() {
    if (std::exchange(reads_, true)) return;
    StartRead(&message_);
    RemoveHold();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      words_.push_back(plane::text_of(bytes_of(message_)));
    }
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    status_ = status;
    is_over_ = true;
    bell_.notify_all();
  }

  Words words() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return words_;
  }
  bool is_over() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return is_over_;
  }
  grpc::Status status() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return status_;
  }
  std::size_t num_trailers(const std::string& key) { return context_.GetServerTrailingMetadata().count(key); }

 private:
  grpc::ClientContext context_;
  grpc::ByteBuffer request_;
  grpc::ByteBuffer message_;
  bool reads_ = false;
  std::mutex mutex_;
  std::condition_variable bell_;
  Words words_;
  bool is_over_ = false;
  grpc::Status status_;
};

// A door in front of a history.
class Street {
 public:
  explicit Street(History& history)
      : socket_("unix:/tmp/headrace-relay-" + std::to_string(getpid()) + "-" + std::to_string(++count_)),
        server_(socket_, [&history](auto& context) { return history.answer(context); }),
        door_(options(socket_), nullptr) {
    REQUIRE(door_.bind());
    door_.open();
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = std::make_unique<grpc::GenericStub>(grpc::CreateCustomChannel(
        "127.0.0.1:" + std::to_string(door_.port()), grpc::InsecureChannelCredentials(), arguments));
  }

  std::unique_ptr<Follower> follow(bool reads = true) { return std::make_unique<Follower>(*stub_, reads); }
  Door& door() { return door_; }

 private:
  static Options options(const std::string& socket) {
    Options chosen;
    chosen.address = "127.0.0.1:0";
    chosen.complete_server = socket;
    chosen.num_threads = 1;
    chosen.gone = {14, "gone", "details"};
    return chosen;
  }

  static int count_;
  const std::string socket_;
  PlainServer server_;
  Door door_;
  std::unique_ptr<grpc::GenericStub> stub_;
};

int Street::count_ = 0;

}  // namespace

TEST_CASE("many readers of one history get all of it, from one stream, and end as it ends") {
  History history;
  Street street(history);
  history.add(Kind::kEntry, "one");
  std::vector<std::unique_ptr<Follower>> readers;
  for (int i = 0; i < 200; ++i) readers.push_back(street.follow());
  for (const auto& reader : readers) REQUIRE(wait_until([&] { return reader->words().size() == 2; }));
  REQUIRE(wait_until([&] { return history.num_shared() == 1; }));

  for (const char* word : {"two", "three"}) history.add(Kind::kEntry, word);
  history.end(grpc::Status::OK);

  for (const auto& reader : readers) {
    REQUIRE(wait_until([&] { return reader->is_over(); }));
    CHECK(reader->status().ok());
    CHECK(reader->words() == Words{"snapshot", "one", "two", "three"});
    CHECK(reader->num_trailers(std::string(kShare)) == 0);
  }
  CHECK(history.num_shared_ever() == 1);
}

TEST_CASE("a history that cannot go on is told to each of its readers, and why") {
  History history;
  Street street(history);
  const auto one = street.follow(), other = street.follow();
  REQUIRE(wait_until([&] { return one->words().size() == 1 && other->words().size() == 1 && history.num_shared() == 1; }));

  history.add(Kind::kEntry, "one");
  history.end({grpc::StatusCode::OUT_OF_RANGE, "it is too old", "details"});

  for (Follower* reader : {one.get(), other.get()}) {
    REQUIRE(wait_until([&] { return reader->is_over(); }));
    CHECK(reader->words() == Words{"snapshot", "one"});
    CHECK(reader->status().error_code() == grpc::StatusCode::OUT_OF_RANGE);
    CHECK(reader->status().error_message() == "it is too old");
    CHECK(reader->status().error_details() == "details");
  }
}

TEST_CASE("who asked for fewer steps gets the newest of them, and everything else, in order") {
  History history("3600000000", "3600000000");  // an hour: no step is due before another thing happens
  Street street(history);
  const auto reader = street.follow();
  REQUIRE(wait_until([&] { return history.num_shared() == 1; }));

  for (const char* word : {"step 1", "step 2"}) history.add(Kind::kStep, word);
  history.add(Kind::kEntry, "an evaluation");
  history.add(Kind::kStep, "step 3");
  history.add(Kind::kSign, "still here");
  REQUIRE(wait_until([&] { return reader->words().size() == 4; }));
  CHECK(reader->words() == Words{"snapshot", "step 2", "an evaluation", "still here"});
  history.end(grpc::Status::OK);

  REQUIRE(wait_until([&] { return reader->is_over(); }));
  CHECK(reader->words().back() == "step 3");  // the last word is never lost
}

TEST_CASE("a step that was held comes when its time has come, though nothing else happens") {
  History history("50000", "50000");
  Street street(history);
  const auto reader = street.follow();
  REQUIRE(wait_until([&] { return history.num_shared() == 1; }));

  for (const char* word : {"step 1", "step 2"}) history.add(Kind::kStep, word);

  REQUIRE(wait_until([&] { return reader->words().size() >= 2 && reader->words().back() == "step 2"; }));
}

TEST_CASE("a reader who is too slow is asked for again, misses nothing, and holds nobody up") {
  constexpr int kNumEntries = 400;
  const std::string large(50'000, 'x');  // so that neither the network nor what is kept has room for all of them
  History history;
  Street street(history);
  const auto quick = street.follow(), slow = street.follow(false);
  REQUIRE(wait_until([&] { return quick->words().size() == 1 && history.num_shared() == 1; }));

  Words expected{"snapshot"};
  for (int i = 0; i < kNumEntries; ++i) {
    expected.push_back(std::to_string(i) + large);
    history.add(Kind::kEntry, expected.back());
  }
  REQUIRE(wait_until([&] { return quick->words().size() == expected.size(); }));
  slow->begin_to_read();
  history.end(grpc::Status::OK);

  REQUIRE(wait_until([&] { return quick->is_over() && slow->is_over(); }));
  CHECK((quick->words() == expected));
  CHECK((slow->words() == expected));
  CHECK(slow->status().ok());
  CHECK(history.num_again() >= 1);
}

TEST_CASE("a reader who needs what came before the stream began is asked for again, whether it has begun or not") {
  History history;
  Street street(history);
  for (const char* word : {"one", "two"}) history.add(Kind::kEntry, word);
  const auto first = street.follow();
  REQUIRE(wait_until([&] { return history.num_shared() == 1; }));

  history.understate(0);
  const auto early = street.follow();
  REQUIRE(wait_until([&] { return early->words() == Words{"snapshot"}; }));
  history.add(Kind::kEntry, "three");
  history.understate(1);
  const auto late = street.follow();

  for (Follower* reader : {first.get(), early.get(), late.get()}) {
    CHECK(wait_until([&] { return reader->words() == Words{"snapshot", "one", "two", "three"}; }));
  }
  CHECK(history.num_again() == 2);
}

TEST_CASE("when the last reader has left, the stream of all of them ends, and a later reader gets one of his own") {
  History history;
  Street street(history);
  auto first = street.follow();
  REQUIRE(wait_until([&] { return history.num_shared() == 1; }));

  first.reset();
  REQUIRE(wait_until([&] { return history.num_shared() == 0; }));
  const auto later = street.follow();
  history.add(Kind::kEntry, "one");

  REQUIRE(wait_until([&] { return later->words() == Words{"snapshot", "one"}; }));
  CHECK(wait_until([&] { return street.door().calls_in_flight() == 1; }));
}

TEST_CASE("readers of a door that closes are told so") {
  History history;
  Street street(history);
  const auto reader = street.follow();
  REQUIRE(wait_until([&] { return history.num_shared() == 1; }));

  street.door().close(0);

  CHECK(wait_until([&] { return reader->is_over(); }));
  CHECK(!reader->status().ok());
  CHECK(wait_until([&] { return history.num_shared() == 0; }));
}

TEST_CASE("a word of a reader is taken as it was meant, or not at all") {
  const auto share = Share::parse("17 1000000 250000 a job");
  REQUIRE(share.has_value());
  CHECK(share->after == 17);
  CHECK(share->period == 1s);
  CHECK(share->wait == 250ms);
  CHECK(share->key == "a job");
  for (const char* word : {"", "17", "17 1 2", "17 1 2 ", "-1 0 0 j", "x 0 0 j", "17  0 j", "99999999999999999999 0 0 j"}) {
    CHECK(!Share::parse(word).has_value());
  }
}

}  // namespace headrace::door
