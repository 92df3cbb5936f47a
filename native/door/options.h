// How a door is set up.  Knows no gRPC, so that bindings can fill it in.
#pragma once

#include <cstdint>
#include <string>

#include "plane/status.h"

namespace headrace::door {

// What one stream may bring before somebody reads it.  Fixed: gRPC's own estimate grows on a fast connection to what all
// streams together may hold, so a caller who writes and never reads would fill that.
inline constexpr int kStreamWindowBytes = 4 << 20;

// Files in PEM.  All empty: no TLS.  Certificates are read again when the files change.
struct Tls {
  std::string certificate;
  std::string key;
  // Callers must show a certificate that this authority signed; empty: none is asked for.
  std::string client_authority;

  bool is_on() const { return !certificate.empty(); }
};

struct Options {
  // "127.0.0.1:50051"; port 0 lets the system choose.
  std::string address;
  // Where the complete server listens: "unix:/path".
  std::string complete_server;
  std::int64_t max_message_bytes = 64 << 20;
  // What callers may say of a call, in bytes as HTTP/2 counts them.
  std::int64_t max_metadata_bytes = 16 << 10;
  // What has come from all callers and is not yet read; when there is more, calls are cancelled until there is less.
  // Once more so much may be what messages have become that came compressed; when it is more, they are refused.
  std::int64_t max_buffered_bytes = std::int64_t{1} << 30;
  // Calls under way, streams included; more are refused.
  std::int64_t max_concurrent_calls = 8192;
  // Threads that read and write messages; 0: as many as the machine is worth.
  int num_threads = 0;
  // How calls end that the complete server cannot be asked for any more, or that are over one of these limits.
  plane::Status gone;
  plane::Status too_many_calls;
  plane::Status too_much_metadata;
  plane::Status too_large;
  plane::Status no_room;
  // How a call ends whose message is not compressed as it says.
  plane::Status malformed;
  Tls tls;
};

}  // namespace headrace::door
