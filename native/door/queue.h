// A completion queue on which calls of a door live, and the one thread that sees to it.
//
// One thread, because gRPC polls from one thread at a time: of several, each that has found something wakes the next one
// before it goes on, which costs as much as an answer.  (gRPC's callback interface has two at least, and hops to a third
// to end a call.)
#pragma once

#include <grpcpp/completion_queue.h>

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

namespace headrace::door {

// What is told when something is done that was begun on a queue.
class Event {
 public:
  // On the queue's thread.  `ok` as gRPC has it for what was begun.
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

class Queue {
 public:
  explicit Queue(std::unique_ptr<grpc::ServerCompletionQueue> queue);
  // It was closed, or never started.
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  void start();
  // Waits until nothing lives on it any more, and ends the thread.
  void close();

  grpc::ServerCompletionQueue& inner() { return *queue_; }

  // Whoever begins anything here lives on it, from before the first that is begun until after the last has happened.
  void add();
  void remove();

 private:
  void run();

  const std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t num_living_ = 0;
  std::thread thread_;
};

}  // namespace headrace::door
