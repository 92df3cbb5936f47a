// Who sees to a completion queue: its own thread, or a lane that has nothing else to do.
#include "door/queue.h"

#include <doctest/doctest.h>
#include <grpcpp/alarm.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "batching/clock.h"

namespace headrace::door {
namespace {

// A server with nothing but a queue, and things that happen on it.
class House {
 public:
  House() {
    builder_.RegisterAsyncGenericService(&service_);
    queue_ = std::make_shared<Queue>(builder_.AddCompletionQueue());
    server_ = builder_.BuildAndStart();
    queue_->start();
  }
  ~House() {
    server_->Shutdown();
    queue_->close();
  }

  Queue& queue() { return *queue_; }

  // Something that happens on whatever thread sees to the queue, once it is begun.
  class Happening final : public Event {
   public:
    Happening(House& house, std::function<void()> what) : queue_(house.queue()), what_(std::move(what)) {}
    // The queue has it when this returns, unless it is to come later.
    void begin(std::chrono::milliseconds later = {}) {
      queue_.add();
      // A moment ago: gRPC rounds up to milliseconds.
      const auto moment = later.count() > 0 ? later : std::chrono::milliseconds(-10);
      alarm_.Set(&queue_.inner(), std::chrono::system_clock::now() + moment, static_cast<Event*>(this));
    }
    void happened(bool) noexcept override {
      what_();
      const std::lock_guard lock(mutex_);
      by_ = std::this_thread::get_id();
      queue_.remove();
      done_.notify_all();
    }
    std::thread::id wait() {
      std::unique_lock lock(mutex_);
      done_.wait(lock, [this] { return by_ != std::thread::id(); });
      return by_;
    }

   private:
    Queue& queue_;
    const std::function<void()> what_;
    grpc::Alarm alarm_;
    std::mutex mutex_;
    std::condition_variable done_;
    std::thread::id by_;
  };

  // On whatever thread sees to the queue; waits until it is done.
  std::thread::id happen(std::function<void()> what = [] {}) {
    Happening happening(*this, std::move(what));
    happening.begin();
    return happening.wait();
  }

  // Until the seat is free: its thread goes when calls are run one after another by lanes that will soon be back.
  void let_thread_go() {
    happen([this] { queue_->offer(); });
    happen([this] { queue_->offer(); });
  }

 private:
  grpc::ServerBuilder builder_;
  grpc::AsyncGenericService service_;
  std::shared_ptr<Queue> queue_;
  std::unique_ptr<grpc::Server> server_;
};

// A lane that wants the seat, until it has had it and was called.
class Lane {
 public:
  explicit Lane(Queue& queue) : queue_(queue), thread_([this] { live(); }) {}
  ~Lane() {
    is_over_ = true;
    thread_.join();
  }
  std::thread::id id() const { return thread_.get_id(); }
  std::atomic<bool> is_called{false};
  std::atomic<int> num_sittings{0};

 private:
  void live() {
    while (!is_over_) {
      if (queue_.attend(is_called, batching::kNever)) ++num_sittings;
      is_called = false;
      std::this_thread::yield();
    }
  }

  Queue& queue_;
  std::atomic<bool> is_over_{false};
  std::thread thread_;
};

// Lets a lane sit until a request has come, with something at its heels if there is to be; whether it came to the lane.
bool brings_request(House& house, std::chrono::milliseconds later, House::Happening* second = nullptr) {
  house.let_thread_go();
  std::atomic<bool> is_called{false};
  House::Happening first(house, [&] {
    house.queue().has_brought_request();
    is_called = true;
    if (second != nullptr) second->begin();
  });
  first.begin(later);
  house.queue().attend(is_called, batching::kNever);
  return first.wait() == std::this_thread::get_id();
}

// Whether a lane sees to both before it leaves; nothing when the request did not come to the lane.
std::optional<bool> takes_both(House& house, std::chrono::milliseconds later) {
  House::Happening second(house, [] {});
  const bool has_come = brings_request(house, later, &second);
  const bool is_both = second.wait() == std::this_thread::get_id();
  return has_come ? std::optional(is_both) : std::nullopt;
}

template <class Condition>
bool comes_true(Condition is_so) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (std::chrono::steady_clock::now() < until) {
    if (is_so()) return true;
  }
  return false;
}

TEST_CASE("nobody else sits down while the thread of a queue sees to it") {
  House house;
  const std::thread::id own = house.happen();
  const std::atomic<bool> is_called{false};
  CHECK_FALSE(house.queue().attend(is_called, batching::kNever));
  CHECK((house.happen() == own));
}

TEST_CASE("a lane takes the seat that is offered, and what comes happens on it") {
  House house;
  const std::thread::id own = house.happen();
  Lane lane(house.queue());
  CHECK(comes_true([&] {
    house.let_thread_go();
    return house.happen() == lane.id();
  }));
  // When nothing comes for a few milliseconds it gives the seat back.
  CHECK(comes_true([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return house.happen() == own;
  }));
}

TEST_CASE("the thread takes back a seat that is left, at once or after a moment") {
  House house;
  const std::thread::id own = house.happen();
  house.let_thread_go();
  CHECK((house.happen() == own));  // nobody has come
  house.let_thread_go();
  house.queue().leave();
  CHECK((house.happen() == own));
}

TEST_CASE("a lane that is called sees to what has come as well, but not when requests come alone") {
  House house;
  const std::chrono::milliseconds kAtOnce{0}, kLater{2};
  CHECK(comes_true([&] { return takes_both(house, kAtOnce) == true; }));
  CHECK(comes_true([&] {
    for (int i = 0; i < 20; ++i) brings_request(house, kLater);
    return takes_both(house, kLater) == false;
  }));
  CHECK(comes_true([&] { return takes_both(house, kAtOnce) == true; }));
}

TEST_CASE("a lane that is called leaves, and whatever comes happens once, whoever sees to it") {
  House house;
  Lane lane(house.queue()), other(house.queue());
  std::atomic<int> num_happened{0};
  std::thread caller([&] {
    for (int i = 0; i < 2'000; ++i) {
      lane.is_called = true;
      house.queue().ring();
      house.queue().leave();
      other.is_called = i % 2 == 0;
    }
  });
  for (int i = 0; i < 2'000; ++i) {
    house.happen([&] {
      house.queue().offer();
      ++num_happened;
    });
  }
  caller.join();
  CHECK(num_happened == 2'000);
}

}  // namespace
}  // namespace headrace::door
