#include "door/door.h"

#include <absl/synchronization/mutex.h>
#include <grpc/grpc.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "door/credentials.h"
#include "door/latecomers.h"
#include "door/onward.h"
#include "door/passage.h"
#include "door/queue.h"
#include "door/relay.h"
#include "door/stream.h"
#include "door/unary.h"

namespace headrace::door {
namespace {

bool is_stream(plane::Method method) {
  return method == plane::Method::kPredictStream || method == plane::Method::kModelStreamInfer;
}

// So many calls may come at once before one of them has been seen to.
constexpr int kNumAwaited = 64;

// One thread reads and answers what the models of four processors are asked: a call takes it some twenty microseconds.
// More only get in each other's way (queue.h).
int num_queues(int wanted) {
  return wanted > 0 ? wanted : std::max(1, static_cast<int>(std::thread::hardware_concurrency() / 4));
}

// How long callers who come again and again, however often they are sent away, may keep the door from closing.
constexpr std::chrono::duration<double> kMostQuietSeconds{0.5};
// So long after gRPC has begun to tell connections that they shall not be used any more, they have heard.
constexpr std::chrono::duration<double> kTellingSeconds{0.1};

int as_int(std::int64_t value) { return static_cast<int>(std::min<std::int64_t>(value, INT32_MAX)); }

}  // namespace

class Door::Parts {
 public:
  Parts(Options chosen, std::shared_ptr<plane::Plane> answering)
      : options(std::move(chosen)),
        plane(std::move(answering)),
        onward(options),
        admission(options),
        latecomers(admission, options.gone) {
    for (std::size_t index = 0; plane != nullptr && index < plane::kMethodNames.size(); ++index) {
      methods.emplace("/" + std::string(plane::kMethodNames[index]), static_cast<plane::Method>(index));
    }
  }

  void configure(grpc::ServerBuilder& builder) {
    builder.AddListeningPort(options.address, credentials_of(options.tls), &port);
    // Admission weighs messages: gRPC would refuse one that is too large when it has all of it, too, without a reason
    // that programs can read.  What has come and waits is bounded by the quota below.
    builder.SetMaxReceiveMessageSize(-1);
    // Compressed messages come as they are: gRPC would inflate them without a bound.
    builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
    builder.SetMaxSendMessageSize(as_int(options.max_message_bytes));
    // Off: a second server on the same port must fail loudly rather than share its callers.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    // Readers of quiet streams ping to keep proxies open; without this the server would hang up on them.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_WRITE_BUFFER_SIZE, 1 << 20);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxParsedMetadataBytes);
    // What gRPC does for each call that nothing here asks for: counts for its channelz service, answers compressed.
    builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, 0);
    builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0);
    builder.SetResourceQuota(grpc::ResourceQuota("headrace").Resize(static_cast<std::size_t>(options.max_buffered_bytes)));
    builder.RegisterAsyncGenericService(&service);
    for (int i = 0; i < num_queues(options.num_threads); ++i) {
      queues.push_back(std::make_shared<Queue>(builder.AddCompletionQueue()));
      relays.try_emplace(queues.back().get(), onward, *queues.back());
    }
  }

  // A call has come.
  void receive(Served& call) {
    if (latecomers.are_expected()) return latecomers.receive(call);
    const auto found = methods.find(call.caller().method());
    if (found == methods.end()) {
      pass(onward, admission, relays.at(&call.queue()), call);
    } else if (is_stream(found->second)) {
      converse(*plane, onward, admission, found->second, call);
    } else {
      answer(*plane, onward, admission, found->second, call);
    }
  }

  const Options options;
  const std::shared_ptr<plane::Plane> plane;
  Onward onward;
  Admission admission;
  Latecomers latecomers;
  std::unordered_map<std::string, plane::Method> methods;  // what the plane answers, by path
  int port = 0;
  grpc::AsyncGenericService service;
  Unpacker unpacker{admission.inflation()};
  const Served::Shared shared{service, admission.inflation(), unpacker, [this](Served& call) { receive(call); }};
  std::vector<std::shared_ptr<Queue>> queues;
  std::unordered_map<const Queue*, Relays> relays;  // of each of them
  std::unique_ptr<grpc::Server> server;
  std::atomic<bool> is_closing{false};
};

Door::Door(Options options, std::shared_ptr<plane::Plane> plane)
    : parts_(std::make_unique<Parts>(std::move(options), std::move(plane))) {
  // Debian builds the locks of gRPC so that each use of one looks for circles among all of them.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
}

Door::~Door() { close(0); }

bool Door::bind() {
  grpc::ServerBuilder builder;
  parts_->configure(builder);
  parts_->server = builder.BuildAndStart();
  if (parts_->server == nullptr) return false;
  for (const auto& queue : parts_->queues) {
    for (int i = 0; i < kNumAwaited; ++i) Served::await(parts_->shared, *queue);
    queue->start();
  }
  return parts_->port != 0;
}

int Door::port() const { return parts_->port; }

void Door::open() { parts_->onward.set_there(); }

void Door::close(double grace_seconds) {
  if (parts_->server == nullptr) return;
  std::chrono::duration<double> grace(std::max(grace_seconds, 0.0));
  Latecomers& latecomers = parts_->latecomers;
  latecomers.expect();
  latecomers.wait_until_quiet(std::min(grace, kMostQuietSeconds));
  parts_->is_closing.store(true);
  if (latecomers.is_hurried()) grace = grace.zero();
  std::thread farewell([&] { latecomers.send_away_after(std::min(grace, kTellingSeconds)); });
  parts_->server->Shutdown(std::chrono::system_clock::now() +
                           std::chrono::duration_cast<std::chrono::system_clock::duration>(grace));
  farewell.join();
  parts_->server->Wait();
  for (const auto& queue : parts_->queues) queue->close();
}

void Door::hurry() {
  parts_->latecomers.hurry();
  // gRPC allows this only for a server that is shutting down, and its C++ face waits for the first shutdown to end.
  if (parts_->server != nullptr && parts_->is_closing.load()) {
    grpc_server_cancel_all_calls(parts_->server->c_server());
  }
}

std::int64_t Door::calls_in_flight() const { return parts_->admission.count(); }

}  // namespace headrace::door
