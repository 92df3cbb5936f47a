#include "door/onward.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include "door/metadata.h"

namespace headrace::door {
namespace {

std::shared_ptr<grpc::Channel> connect(const Options& options) {
  grpc::ChannelArguments arguments;
  // The complete server keeps the limits; what it sends has passed them.
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_MAX_METADATA_SIZE, 64 << 10);
  // A call is never tried twice: it is the caller who knows whether it may be.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
  arguments.SetInt(GRPC_ARG_HTTP2_WRITE_BUFFER_SIZE, 1 << 20);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20);
  arguments.SetInt("grpc.enable_http_proxy", 0);
  return grpc::CreateCustomChannel(options.complete_server, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

Onward::Onward(const Options& options) : gone_(options.gone), stub_(connect(options)) {}

void Onward::prepare(const Caller& caller, grpc::ClientContext& context) const {
  tell(caller, context);
  context.set_wait_for_ready(!is_there_.load(std::memory_order_acquire));
}

bool Onward::is_gone(const grpc::Status& status, const grpc::ClientContext& context) const {
  // What the complete server itself refuses has trailers; what the connection lost has none.
  return status.error_code() == grpc::StatusCode::UNAVAILABLE && context.GetServerTrailingMetadata().empty();
}

grpc::Status Onward::pass_on(const grpc::Status& status, const grpc::ClientContext& context,
                             Caller& caller) const {
  if (is_gone(status, context)) return status_of(gone_);
  // The details are among the trailers, and travel there.
  tell_trailing(context, caller);
  return {status.error_code(), status.error_message()};
}

grpc::Status Onward::pass_on_to_each(const grpc::Status& status, const grpc::ClientContext& context,
                                     Caller& caller) const {
  if (is_gone(status, context)) return status_of(gone_);
  tell_trailing_of_others(context, caller);
  return {status.error_code(), status.error_message()};
}

plane::Status Onward::described(const grpc::Status& status, const grpc::ClientContext& context) const {
  if (is_gone(status, context)) return gone_;
  return {static_cast<int>(status.error_code()), status.error_message(), status.error_details()};
}

}  // namespace headrace::door
