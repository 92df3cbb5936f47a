// Makes gRPC calls, measures them and itself, and prints one JSON object.  See options.cc.
#include <sys/resource.h>

#include <cstdio>
#include <stdexcept>

#include "report.h"
#include "run.h"

double load::processor_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

int main(int argc, char** argv) {
  try {
    const auto options = load::read_options(argc, argv);
    load::Target target(options);
    const auto outcome = options.rate > 0 ? load::open_loop(options, target) : load::closed_loop(options, target);
    std::printf("%s\n", load::report(options, outcome).c_str());
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "%s\n%s", error.what(), load::kUsage);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
