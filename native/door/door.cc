#include "door/door.h"

#include <grpc/grpc.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/impl/rpc_service_method.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/server_callback.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "door/credentials.h"
#include "door/onward.h"
#include "door/passage.h"
#include "door/stream.h"
#include "door/unary.h"

namespace headrace::door {
namespace {

using grpc::ByteBuffer;

bool is_stream(plane::Method method) {
  return method == plane::Method::kPredictStream || method == plane::Method::kModelStreamInfer;
}

// The methods that the plane answers, as gRPC has its generated services; messages stay bytes.
class DataPlane final : public grpc::Service {
 public:
  DataPlane(plane::Plane& plane, Onward& onward, Admission& admission) {
    for (std::size_t index = 0; index < plane::kMethodNames.size(); ++index) {
      const auto method = static_cast<plane::Method>(index);
      paths_[index] = "/" + std::string(plane::kMethodNames[index]);
      const auto shape =
          is_stream(method) ? grpc::internal::RpcMethod::BIDI_STREAMING : grpc::internal::RpcMethod::NORMAL_RPC;
      AddMethod(new grpc::internal::RpcServiceMethod(paths_[index].c_str(), shape, nullptr));
      MarkMethodRawCallback(static_cast<int>(index), handler(plane, onward, admission, method));
    }
  }

 private:
  static grpc::internal::MethodHandler* handler(plane::Plane& plane, Onward& onward, Admission& admission,
                                                plane::Method method) {
    if (is_stream(method)) {
      return new grpc::internal::CallbackBidiHandler<ByteBuffer, ByteBuffer>(
          [&plane, &onward, &admission, method](grpc::CallbackServerContext* caller) {
            return converse(plane, onward, admission, method, *caller);
          });
    }
    return new grpc::internal::CallbackUnaryHandler<ByteBuffer, ByteBuffer>(
        [&plane, &onward, &admission, method](grpc::CallbackServerContext* caller, const ByteBuffer* request,
                                              ByteBuffer* response) {
          return answer(plane, onward, admission, method, *caller, *request, *response);
        });
  }

  std::array<std::string, plane::kMethodNames.size()> paths_;
};

int as_int(std::int64_t value) { return static_cast<int>(std::min<std::int64_t>(value, INT32_MAX)); }

}  // namespace

class Door::Parts {
 public:
  Parts(Options chosen, std::shared_ptr<plane::Plane> answering)
      : options(std::move(chosen)),
        plane(std::move(answering)),
        onward(options),
        admission(options),
        passage(onward, admission) {
    if (plane != nullptr) data_plane = std::make_unique<DataPlane>(*plane, onward, admission);
  }

  void configure(grpc::ServerBuilder& builder) {
    builder.AddListeningPort(options.address, credentials_of(options.tls), &port);
    // Admission weighs messages: gRPC would refuse one that is too large when it has all of it, too, without a reason
    // that programs can read.  What has come and waits is bounded by the quota below.
    builder.SetMaxReceiveMessageSize(-1);
    builder.SetMaxSendMessageSize(as_int(options.max_message_bytes));
    // Off: a second server on the same port must fail loudly rather than share its callers.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    // Readers of quiet streams ping to keep proxies open; without this the server would hang up on them.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_WRITE_BUFFER_SIZE, 1 << 20);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxParsedMetadataBytes);
    builder.SetResourceQuota(grpc::ResourceQuota("headrace").Resize(static_cast<std::size_t>(options.max_buffered_bytes)));
    if (data_plane != nullptr) builder.RegisterService(data_plane.get());
    builder.RegisterCallbackGenericService(&passage);
  }

  const Options options;
  const std::shared_ptr<plane::Plane> plane;
  Onward onward;
  Admission admission;
  Passage passage;
  std::unique_ptr<DataPlane> data_plane;
  int port = 0;
  std::unique_ptr<grpc::Server> server;
  std::atomic<bool> is_closing{false};
};

Door::Door(Options options, std::shared_ptr<plane::Plane> plane)
    : parts_(std::make_unique<Parts>(std::move(options), std::move(plane))) {}

Door::~Door() { close(0); }

bool Door::bind() {
  grpc::ServerBuilder builder;
  parts_->configure(builder);
  parts_->server = builder.BuildAndStart();
  return parts_->server != nullptr && parts_->port != 0;
}

int Door::port() const { return parts_->port; }

void Door::open() { parts_->onward.set_there(); }

void Door::close(double grace_seconds) {
  if (parts_->server == nullptr) return;
  parts_->is_closing.store(true, std::memory_order_release);
  const auto grace = std::chrono::duration_cast<std::chrono::system_clock::duration>(
      std::chrono::duration<double>(std::max(grace_seconds, 0.0)));
  parts_->server->Shutdown(std::chrono::system_clock::now() + grace);
  parts_->server->Wait();
}

void Door::hurry() {
  // gRPC allows this only for a server that is shutting down, and its C++ face waits for the first shutdown to end.
  if (parts_->server != nullptr && parts_->is_closing.load(std::memory_order_acquire)) {
    grpc_server_cancel_all_calls(parts_->server->c_server());
  }
}

std::int64_t Door::calls_in_flight() const { return parts_->admission.count(); }

}  // namespace headrace::door
