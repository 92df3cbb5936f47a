// A completion queue on which calls of a door live, and the one thread at a time that sees to it.
//
// One, because gRPC polls from one thread at a time: of several, each that has found something wakes the next one
// before it goes on, which costs as much as an answer.  (gRPC's callback interface has two at least, and hops to a third
// to end a call.)  It is a thread of the queue's own, or a lane that has nothing else to do (batching/source.h): who has
// the seat polls.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

#include "batching/source.h"

namespace headrace::door {

// What is told when something is done that was begun on a queue.
class Event {
 public:
  // On the thread that has the queue's seat.  `ok` as gRPC has it for what was begun.
  virtual void happened(bool ok) noexcept = 0;

 protected:
  ~Event() = default;
};

// An event that tells one member function.
template <class Owner>
class Told final : public Event {
 public:
  Told(Owner& owner, void (Owner::*act)(bool)) : owner_(owner), act_(act) {}
  void happened(bool ok) noexcept override { (owner_.*act_)(ok); }

 private:
  Owner& owner_;
  void (Owner::*const act_)(bool);
};

class Queue final : public batching::Source, public std::enable_shared_from_this<Queue> {
 public:
  explicit Queue(std::unique_ptr<grpc::ServerCompletionQueue> queue);
  // It was closed, or never started.
  ~Queue() override;
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  void start();
  // Waits until nothing lives on it any more, and ends the thread.
  void close();

  grpc::ServerCompletionQueue& inner() { return *queue_; }

  // Whoever begins anything here lives on it, from before the first that is begun until after the last has happened.
  void add();
  void remove();
  // One more request has come that is to be computed.  On the thread that has the seat.
  void has_brought_request() noexcept;

  void offer() noexcept override;
  bool attend(const std::atomic<bool>& is_called, double until) noexcept override;
  void leave() noexcept override;
  void ring() noexcept override;

 private:
  enum class Seat { kThread, kFree, kLane };

  void run();
  // Waits until the thread is needed again.
  void stand_by();
  using Seen = grpc::CompletionQueue::NextStatus;
  // Waits for what happens next, at most so long, and tells it.
  Seen see_to_one(double seconds);
  // The same without going to sleep, and for a moment only.
  Seen watch_for_one(const std::atomic<bool>& is_called);
  void give_seat_to(Seat seat);
  void has_rung(bool ok);

  const std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::mutex mutex_;
  std::condition_variable died_;
  std::int64_t num_living_ = 0;
  bool is_closed_ = false;
  std::condition_variable seat_changed_;
  Seat seat_ = Seat::kThread;
  std::uint64_t num_moves_ = 0;  // how often a lane has taken or left the seat
  bool is_ringing_ = false;
  grpc::Alarm bell_;
  Told<Queue> rung_{*this, &Queue::has_rung};
  std::thread thread_;
  // Of who has the seat.
  double watches_from_ = 0;
  std::int64_t num_empty_looks_ = 0;  // since the last request
  int company_ = 0;                   // while it is not zero, requests are likely to come with others
  // The thread's own.
  std::thread::id thread_id_;
  bool is_offered_ = false;
  double offered_at_ = 0;
};

}  // namespace headrace::door
