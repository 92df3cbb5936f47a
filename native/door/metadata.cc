#include "door/metadata.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <string>

namespace headrace::door {
namespace {

std::string_view view(grpc::string_ref text) { return {text.data(), text.length()}; }

std::string own(std::string_view text) { return std::string(text); }

bool begins_with(std::string_view text, std::string_view prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

// Headers of one hop.  gRPC's core keeps most of them to itself; what it shows must not be sent on a second time.
bool is_of_one_hop(std::string_view key) {
  constexpr std::array<std::string_view, 10> kOfOneHop{
      "connection",   "content-length", "content-type",       "grpc-accept-encoding", "grpc-encoding",
      "grpc-timeout", "host",           "keep-alive",         "te",                   "user-agent",
  };
  return key.empty() || key.front() == ':' ||
         std::find(kOfOneHop.begin(), kOfOneHop.end(), key) != kOfOneHop.end() || begins_with(key, "grpc-internal-");
}

// Who is not the door itself.
bool is_for_callers(std::string_view key) { return !is_of_one_hop(key) && !begins_with(key, kOwnPrefix); }

}  // namespace

std::string identity_of(const Caller& caller) {
  const std::shared_ptr<const grpc::AuthContext> context = caller.auth_context();
  if (context == nullptr || !context->IsPeerAuthenticated()) return {};
  const std::vector<grpc::string_ref> names = context->GetPeerIdentity();
  return names.empty() ? std::string() : own(view(names.front()));
}

void tell(const Caller& caller, grpc::ClientContext& onward) {
  for (const auto& [key, value] : caller.client_metadata()) {
    const std::string_view name = view(key);
    if (name == "user-agent") onward.AddMetadata(own(kUserAgent), own(view(value)));
    if (!is_for_callers(name)) continue;
    onward.AddMetadata(own(name), own(view(value)));
  }
  onward.AddMetadata(own(kPeer), caller.peer());
  if (std::string identity = identity_of(caller); !identity.empty()) {
    onward.AddMetadata(own(kIdentity), identity);
  }
  if (const gpr_timespec due = caller.raw_deadline();
      gpr_time_cmp(due, gpr_inf_future(due.clock_type)) != 0) {
    onward.set_deadline(due);
  }
  if (const std::string_view authority = view(caller.ExperimentalGetAuthority()); !authority.empty()) {
    onward.set_authority(own(authority));
  }
}

std::string_view value_of(const Caller& caller, std::string_view key) {
  const auto& metadata = caller.client_metadata();
  const auto found = metadata.find(grpc::string_ref(key.data(), key.size()));
  return found == metadata.end() ? std::string_view() : view(found->second);
}

void tell_initial(const grpc::ClientContext& onward, Caller& caller) {
  for (const auto& [key, value] : onward.GetServerInitialMetadata()) {
    if (!is_of_one_hop(view(key))) caller.AddInitialMetadata(own(view(key)), own(view(value)));
  }
}

void tell_trailing(const grpc::ClientContext& onward, Caller& caller) {
  for (const auto& [key, value] : onward.GetServerTrailingMetadata()) {
    if (is_for_callers(view(key))) caller.AddTrailingMetadata(own(view(key)), own(view(value)));
  }
}

void tell_trailing_of_others(const grpc::ClientContext& onward, Caller& caller) {
  for (const auto& [key, value] : onward.GetServerTrailingMetadata()) {
    if (is_for_callers(view(key)) && view(key) != kRequestId) {
      caller.AddTrailingMetadata(own(view(key)), own(view(value)));
    }
  }
}

std::string_view trailing_value_of(const grpc::ClientContext& onward, std::string_view key) {
  const auto& metadata = onward.GetServerTrailingMetadata();
  const auto found = metadata.find(grpc::string_ref(key.data(), key.size()));
  return found == metadata.end() ? std::string_view() : view(found->second);
}

}  // namespace headrace::door
