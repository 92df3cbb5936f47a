// One thread starts calls when they are due; another takes their ends.  They share two counters, nothing else.
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>

#include <atomic>
#include <memory>
#include <random>
#include <thread>

#include "run.h"

namespace load {
namespace {

struct PacedCall {
  grpc::ClientContext context;
  std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader;
  grpc::ByteBuffer answer;
  grpc::Status status;
  Clock::time_point due_at;
};

// Takes the ends of calls until the queue is shut down and empty.
class Ends {
 public:
  Ends(const Options& options, Window window) : options_(options), window_(window) {}

  void run() {
    void* tag = nullptr;
    bool ok = false;
    while (queue.Next(&tag, &ok)) {
      const std::unique_ptr<PacedCall> call(static_cast<PacedCall*>(tag));
      const auto now = Clock::now();
      const auto took = now - call->due_at;
      auto& tally = window_.holds(now) ? measured : outside;
      tally.note(call->status, call->status.ok() ? call->answer.Length() : 0, nanoseconds(took));
      if (call->status.ok() && took <= seconds(options_.deadline_seconds)) ++tally.good;
      num_ended.fetch_add(1, std::memory_order_relaxed);
    }
  }

  grpc::CompletionQueue queue;
  Tally measured, outside;
  std::atomic<std::uint64_t> num_ended{0};

 private:
  const Options& options_;
  const Window window_;
};

void start(const Options& options, Target& target, std::uint64_t number, Clock::time_point due_at, Ends& ends) {
  auto call = std::make_unique<PacedCall>();
  call->due_at = due_at;
  const auto left = due_at + seconds(options.deadline_seconds) - Clock::now();
  call->context.set_deadline(from_now(std::chrono::duration<double>(left).count()));
  auto& stub = *target.stubs[number % target.stubs.size()];
  const auto& body = target.bodies[number % target.bodies.size()];
  call->reader = stub.PrepareUnaryCall(&call->context, options.method, body, &ends.queue);
  call->reader->StartCall();
  auto* const tag = call.release();  // the queue's, until its end is taken
  tag->reader->Finish(&tag->answer, &tag->status, tag);
}

// Starts each call when it is due, from `begin` until the window is over.
void pace(const Options& options, Target& target, Clock::time_point begin, Window window, Ends& ends, Outcome& outcome) {
  std::mt19937_64 random(options.seed);
  std::exponential_distribution<double> gap(options.rate);
  for (auto due_at = begin; due_at < window.end; due_at += seconds(gap(random))) {
    const bool counts = window.holds(due_at);
    if (counts) ++outcome.due;
    std::this_thread::sleep_until(due_at);
    if (outcome.started - ends.num_ended.load(std::memory_order_relaxed) >=
        static_cast<std::uint64_t>(options.most_in_flight)) {
      if (counts) ++outcome.unsent;
      continue;
    }
    start(options, target, outcome.started++, due_at, ends);
    if (counts) outcome.late.add(nanoseconds(Clock::now() - due_at));
  }
}

}  // namespace

Outcome open_loop(const Options& options, Target& target) {
  const auto begin = Clock::now();
  Window window;
  window.begin = begin + seconds(options.warm_up_seconds);
  window.end = window.begin + seconds(options.seconds);
  Outcome outcome;
  auto taker = std::make_unique<Ends>(options, window);
  std::thread taking([&taker] { taker->run(); });
  std::thread pacing([&] { pace(options, target, begin, window, *taker, outcome); });

  std::this_thread::sleep_until(window.begin);
  const double before = processor_seconds();
  std::this_thread::sleep_until(window.end);
  outcome.own_seconds = processor_seconds() - before;
  outcome.seconds = std::chrono::duration<double>(Clock::now() - window.begin).count();
  pacing.join();
  taker->queue.Shutdown();  // every call has a deadline, so this ends
  taking.join();
  outcome.measured.add(taker->measured);
  outcome.outside.add(taker->outside);
  return outcome;
}

}  // namespace load
