#include "door/queue.h"

#include <utility>

namespace headrace::door {

Queue::Queue(std::unique_ptr<grpc::ServerCompletionQueue> queue) : queue_(std::move(queue)) {}

Queue::~Queue() {
  if (thread_.joinable()) close();
}

void Queue::start() {
  thread_ = std::thread([this] { run(); });
}

void Queue::close() {
  if (!thread_.joinable()) return;
  {
    // Nothing may be begun on a queue that was shut down.
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return num_living_ == 0; });
  }
  queue_->Shutdown();
  thread_.join();
}

void Queue::add() {
  const std::lock_guard lock(mutex_);
  ++num_living_;
}

void Queue::remove() {
  const std::lock_guard lock(mutex_);
  if (--num_living_ == 0) changed_.notify_all();
}

void Queue::run() {
  void* event = nullptr;
  bool ok = false;
  while (queue_->Next(&event, &ok)) static_cast<Event*>(event)->happened(ok);
}

}  // namespace headrace::door
