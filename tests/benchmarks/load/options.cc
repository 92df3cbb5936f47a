#include "options.h"

#include <functional>
#include <map>
#include <stdexcept>

namespace load {

const char* const kUsage =
    "usage: load --target HOST:PORT --method /package.Service/Method --body FILE [--body FILE ...]\n"
    "  closed loop: --callers N [--calls N | --seconds S] [--pause-ms MS after an error]\n"
    "  open loop:   --rate CALLS_A_SECOND [--seconds S] [--seed N] [--most-in-flight N]\n"
    "  both:        [--connections N] [--threads N] [--warm-up S] [--deadline-ms MS] [--service-config JSON]\n"
    "Prints one JSON object.\n";

namespace {

double number(const std::string& text, double least) {
  std::size_t used = 0;
  double value = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (text.empty() || used != text.size() || !(value >= least)) {
    throw std::invalid_argument("'" + text + "' is not a number of at least " + std::to_string(least));
  }
  return value;
}

}  // namespace

Options read_options(int argc, char** argv) {
  Options o;
  using Setter = std::function<void(const std::string&)>;
  const std::map<std::string, Setter> setters{
      {"--target", [&](auto& v) { o.target = v; }},
      {"--method", [&](auto& v) { o.method = v; }},
      {"--body", [&](auto& v) { o.bodies.push_back(v); }},
      {"--service-config", [&](auto& v) { o.service_config = v; }},
      {"--callers", [&](auto& v) { o.callers = static_cast<int>(number(v, 1)); }},
      {"--connections", [&](auto& v) { o.connections = static_cast<int>(number(v, 1)); }},
      {"--threads", [&](auto& v) { o.threads = static_cast<int>(number(v, 1)); }},
      {"--warm-up", [&](auto& v) { o.warm_up_seconds = number(v, 0); }},
      {"--seconds", [&](auto& v) { o.seconds = number(v, 0.001); }},
      {"--calls", [&](auto& v) { o.calls = static_cast<std::int64_t>(number(v, 1)); }},
      {"--deadline-ms", [&](auto& v) { o.deadline_seconds = number(v, 0.001) / 1e3; }},
      {"--pause-ms", [&](auto& v) { o.pause_seconds = number(v, 0) / 1e3; }},
      {"--rate", [&](auto& v) { o.rate = number(v, 0.001); }},
      {"--most-in-flight", [&](auto& v) { o.most_in_flight = static_cast<std::int64_t>(number(v, 1)); }},
      {"--seed", [&](auto& v) { o.seed = static_cast<std::uint64_t>(number(v, 0)); }},
  };
  for (int i = 1; i < argc; i += 2) {
    const auto found = setters.find(argv[i]);
    if (found == setters.end()) throw std::invalid_argument(std::string("unknown option ") + argv[i]);
    if (i + 1 == argc) throw std::invalid_argument(std::string(argv[i]) + " needs a value");
    found->second(argv[i + 1]);
  }
  if (o.target.empty() || o.method.empty() || o.bodies.empty()) {
    throw std::invalid_argument("--target, --method and --body are needed");
  }
  if (o.rate > 0 && o.calls > 0) throw std::invalid_argument("--calls belongs to the closed loop, --rate to the open");
  return o;
}

}  // namespace load
