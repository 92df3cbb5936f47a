// What the command line asks for.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace load {

struct Options {
  std::string target;               // where the server is, as gRPC writes it: 127.0.0.1:50051, unix:/path, ipv4:a:1,b:2
  std::string method;               // /package.Service/Method
  std::vector<std::string> bodies;  // files with one request each; calls take them in turn
  std::string service_config;       // gRPC's JSON for balancing and retries
  int callers = 1;
  int connections = 1;
  int threads = 1;                   // that poll; callers are dealt out to them
  double warm_up_seconds = 0.5;      // before anything is measured
  double seconds = 5;                // that are measured
  std::int64_t calls = 0;            // closed loop: this many calls instead of `seconds`
  double deadline_seconds = 30;      // of each call
  double pause_seconds = 0;          // closed loop: how long a caller rests after an error
  double rate = 0;                   // open loop: calls a second
  std::int64_t most_in_flight = 20'000;  // open loop: beyond it a call is not made, and counted as such
  std::uint64_t seed = 1;            // of the arrivals
};

// Raises std::invalid_argument with what to write instead.
Options read_options(int argc, char** argv);

extern const char* const kUsage;

}  // namespace load
