// Each thread polls a completion queue of its own and owns the callers that are dealt to it: no locks, and no thread is
// woken but by the network.
#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>

#include <memory>
#include <optional>
#include <thread>

#include "run.h"

namespace load {
namespace {

class Worker;

// One caller with at most one call, whose memory it uses again for the next.
class Caller {
 public:
  Caller(Worker& worker, grpc::GenericStub& stub, std::size_t first_body)
      : worker_(worker), stub_(stub), body_(first_body) {}

  void start(Clock::time_point now);
  // The call has ended, or the rest after an error.  Starts the next one where there is to be one.
  void proceed();

 private:
  Worker& worker_;
  grpc::GenericStub& stub_;
  std::size_t body_;
  std::optional<grpc::ClientContext> context_;
  std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader_;
  grpc::ByteBuffer answer_;
  grpc::Status status_;
  Clock::time_point started_at_;
  grpc::Alarm alarm_;
  bool resting_ = false;
};

class Worker {
 public:
  Worker(const Options& options, Target& target, Window window, int index)
      : options(options), target(target), window(window) {
    left_ = options.calls / options.threads + (index < options.calls % options.threads ? 1 : 0);
    for (int i = index; i < options.callers; i += options.threads) {
      auto& stub = *target.stubs[static_cast<std::size_t>(i) % target.stubs.size()];
      callers_.push_back(std::make_unique<Caller>(*this, stub, static_cast<std::size_t>(i)));
    }
  }

  void run() {
    const auto now = Clock::now();
    for (auto& caller : callers_) {
      if (may_start(now)) caller->start(now);
    }
    void* tag = nullptr;
    bool ok = false;
    while (busy > 0 && queue.Next(&tag, &ok)) static_cast<Caller*>(tag)->proceed();
    queue.Shutdown();
    while (queue.Next(&tag, &ok)) {
    }
  }

  // Takes one of the calls that are left to make.
  bool may_start(Clock::time_point now) {
    if (options.calls == 0) return now < window.end;
    if (left_ == 0) return false;
    --left_;
    return true;
  }

  const Options& options;
  Target& target;
  const Window window;
  grpc::CompletionQueue queue;
  Tally measured, outside;
  std::uint64_t started = 0;
  int busy = 0;  // callers with a call, or at rest

 private:
  std::int64_t left_;
  std::vector<std::unique_ptr<Caller>> callers_;
};

void Caller::start(Clock::time_point now) {
  ++worker_.busy;
  ++worker_.started;
  started_at_ = now;
  context_.emplace();
  context_->set_deadline(from_now(worker_.options.deadline_seconds));
  answer_.Clear();
  const auto& bodies = worker_.target.bodies;
  reader_ = stub_.PrepareUnaryCall(&*context_, worker_.options.method, bodies[body_++ % bodies.size()], &worker_.queue);
  reader_->StartCall();
  reader_->Finish(&answer_, &status_, this);
}

void Caller::proceed() {
  --worker_.busy;
  const auto now = Clock::now();
  if (resting_) {
    resting_ = false;
  } else {
    const auto latency = nanoseconds(now - started_at_);
    const auto bytes = status_.ok() ? answer_.Length() : 0;
    (worker_.window.holds(now) ? worker_.measured : worker_.outside).note(status_, bytes, latency);
    if (!status_.ok() && worker_.options.pause_seconds > 0 && now < worker_.window.end) {
      resting_ = true;
      ++worker_.busy;
      alarm_.Set(&worker_.queue, from_now(worker_.options.pause_seconds), this);
      return;
    }
  }
  if (worker_.may_start(now)) start(now);
}

}  // namespace

Outcome closed_loop(const Options& options, Target& target) {
  Window window;
  window.begin = Clock::now() + (options.calls > 0 ? Clock::duration::zero() : seconds(options.warm_up_seconds));
  window.end = options.calls > 0 ? Clock::time_point::max() : window.begin + seconds(options.seconds);
  std::vector<std::unique_ptr<Worker>> workers;
  for (int i = 0; i < options.threads; ++i) workers.push_back(std::make_unique<Worker>(options, target, window, i));
  std::vector<std::thread> threads;
  for (auto& worker : workers) threads.emplace_back([&worker] { worker->run(); });

  Outcome outcome;
  std::this_thread::sleep_until(window.begin);
  const double before = processor_seconds();
  const auto began_at = Clock::now();
  if (options.calls == 0) {
    std::this_thread::sleep_until(window.end);
    outcome.own_seconds = processor_seconds() - before;
    outcome.seconds = std::chrono::duration<double>(Clock::now() - began_at).count();
  }
  for (auto& thread : threads) thread.join();
  if (options.calls > 0) {
    outcome.own_seconds = processor_seconds() - before;
    outcome.seconds = std::chrono::duration<double>(Clock::now() - began_at).count();
  }
  for (const auto& worker : workers) {
    outcome.measured.add(worker->measured);
    outcome.outside.add(worker->outside);
    outcome.started += worker->started;
  }
  return outcome;
}

}  // namespace load
