// Which words about a call travel on, and which belong to one connection only.
#pragma once

#include <grpcpp/client_context.h>
#include <string_view>

#include "door/served.h"

namespace headrace::door {

// What the door itself says of a call to the complete server.  Callers cannot: whatever begins like this is taken from
// them.
inline constexpr std::string_view kOwnPrefix = "x-headrace-";
// The caller's address, as gRPC writes it: "ipv4:127.0.0.1:40000".
inline constexpr std::string_view kPeer = "x-headrace-peer";
// The name in the caller's certificate, when the door asked for one.
inline constexpr std::string_view kIdentity = "x-headrace-identity";
// A message of a stream that travels as a call of its own.
inline constexpr std::string_view kPart = "x-headrace-part";
// That the reader of a stream may read along with others (relay.h), and what the complete server says of him then.
inline constexpr std::string_view kMayShare = "x-headrace-may-share";
inline constexpr std::string_view kShare = "x-headrace-share";
// The stream that they share begins after this place.
inline constexpr std::string_view kShared = "x-headrace-shared";
// A reader has got all up to this place already.
inline constexpr std::string_view kAfter = "x-headrace-after";
// How the caller calls itself; gRPC does not let its own header be set.
inline constexpr std::string_view kUserAgent = "x-headrace-user-agent";

// Finds a call in logs, for both sides.
inline constexpr const char* kRequestId = "x-request-id";

// The name that a caller's certificate proves; empty when there is none.
std::string identity_of(const Caller& caller);

// Say of a call to the complete server what the caller said of his: metadata, deadline, authority; and who he is.
void tell(const Caller& caller, grpc::ClientContext& onward);

// One value of the caller's metadata; empty when there is none.
std::string_view value_of(const Caller& caller, std::string_view key);

// What the complete server said before and after its answers, but for what it said to the door.
void tell_initial(const grpc::ClientContext& onward, Caller& caller);
void tell_trailing(const grpc::ClientContext& onward, Caller& caller);
// The same, of a call that is not this caller's own: without the id that it is found by.
void tell_trailing_of_others(const grpc::ClientContext& onward, Caller& caller);

// One value of what the complete server said after its answers; empty when there is none.
std::string_view trailing_value_of(const grpc::ClientContext& onward, std::string_view key);

}  // namespace headrace::door
