// Follows one job with many readers, and measures how old each step is when a reader has it.
//
//     follow --target HOST:PORT --request FILE [--readers 1000] [--connections 16] [--seconds 10] [--wait 30]
//
// Each reader is a StreamProgress of its own with the request in the file, all on one queue that one thread polls, so
// that a reader costs as little as it can.  Once every reader has seen a step that was less than a second old, and a
// second after that, steps are counted for so many seconds.  Prints one line of JSON; `num_current` below `readers` says
// that not all of them ever caught up, and then nothing was counted.
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <sys/resource.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "histogram.h"

namespace {

constexpr const char* kMethod = "/headrace.training.v1.TrainingService/StreamProgress";
constexpr std::int64_t kCurrentNanoseconds = 1'000'000'000;

std::int64_t now() {
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Walks the fields of a message in the wire format of protobuf.
class Fields {
 public:
  explicit Fields(std::string_view bytes) : bytes_(bytes) {}

  // The next field; false at the end, or where the bytes are no message.
  bool next() {
    if (bytes_.empty()) return false;
    const std::uint64_t tag = varint();
    number = tag >> 3;
    content = {};
    switch (tag & 7) {
      case 0:
        value = varint();
        return true;
      case 1:
        return take(8);
      case 2:
        return take(varint());
      case 5:
        return take(4);
      default:
        return false;
    }
  }

  std::uint64_t number = 0;
  std::uint64_t value = 0;
  std::string_view content;

 private:
  std::uint64_t varint() {
    std::uint64_t result = 0;
    for (int shift = 0; shift < 64 && !bytes_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(bytes_.front());
      bytes_.remove_prefix(1);
      result |= std::uint64_t{byte & 0x7fU} << shift;
      if (byte < 0x80) break;
    }
    return result;
  }

  bool take(std::uint64_t size) {
    if (size > bytes_.size()) return false;
    content = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return true;
  }

  std::string_view bytes_;
};

// When the step of a StreamProgressResponse happened, in nanoseconds; nothing when it is no step.
std::optional<std::int64_t> step_at(std::string_view frame) {
  for (Fields fields(frame); fields.next();) {
    if (fields.number != 2) continue;  // event
    std::int64_t at = 0;
    bool is_step = false;
    for (Fields event(fields.content); event.next();) {
      if (event.number == 4) is_step = true;  // step_completed
      if (event.number != 2) continue;        // time
      for (Fields time(event.content); time.next();) {
        at += static_cast<std::int64_t>(time.value) * (time.number == 1 ? 1'000'000'000 : 1);
      }
    }
    if (is_step) return at;
  }
  return std::nullopt;
}

struct Seen {
  int num_current = 0;
  bool counts = false;
  load::Histogram latency;
};

class Reader {
 public:
  Reader(grpc::GenericStub& stub, grpc::CompletionQueue& queue, const grpc::ByteBuffer& request, Seen& seen)
      : request_(request), seen_(seen), stream_(stub.PrepareCall(&context_, kMethod, &queue)) {
    stream_->StartCall(this);
  }

  void proceed(bool ok) {
    if (!ok) return;  // the stream has ended; the benchmark does not follow jobs to their end
    if (step_ < 2) {
      if (step_++ == 0) stream_->WriteLast(request_, {}, this);
      else stream_->Read(&message_, this);
      return;
    }
    grpc::Slice whole;
    if (message_.DumpToSingleSlice(&whole).ok()) note({reinterpret_cast<const char*>(whole.begin()), whole.size()});
    stream_->Read(&message_, this);
  }

 private:
  void note(std::string_view frame) {
    const auto at = step_at(frame);
    if (!at) return;
    const std::int64_t age = now() - *at;
    if (!is_current_ && age < kCurrentNanoseconds) {
      is_current_ = true;
      ++seen_.num_current;
    }
    if (seen_.counts) seen_.latency.add(age);
  }

  const grpc::ByteBuffer& request_;
  Seen& seen_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  grpc::ByteBuffer message_;
  int step_ = 0;
  bool is_current_ = false;
};

// Lets readers read until then, or until `is_enough`.
template <class Enough>
void read_until(grpc::CompletionQueue& queue, std::int64_t until, const Enough& is_enough) {
  void* tag = nullptr;
  bool ok = false;
  while (now() < until && !is_enough()) {
    const auto deadline = std::chrono::system_clock::now() + std::chrono::milliseconds(20);
    if (queue.AsyncNext(&tag, &ok, deadline) == grpc::CompletionQueue::GOT_EVENT) static_cast<Reader*>(tag)->proceed(ok);
  }
}

std::int64_t after(double seconds) { return now() + static_cast<std::int64_t>(seconds * 1e9); }

}  // namespace

int main(int count, char** arguments) {
  std::string target, request_file;
  int num_readers = 1000, num_connections = 16;
  double seconds = 10, wait = 30;
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string_view name = arguments[i];
    const char* value = arguments[i + 1];
    if (name == "--target") target = value;
    else if (name == "--request") request_file = value;
    else if (name == "--readers") num_readers = std::atoi(value);
    else if (name == "--connections") num_connections = std::atoi(value);
    else if (name == "--seconds") seconds = std::atof(value);
    else if (name == "--wait") wait = std::atof(value);
    else return std::fprintf(stderr, "%s is not known\n", arguments[i]), 2;
  }
  std::ifstream file(request_file, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  const grpc::Slice slice(content);
  const grpc::ByteBuffer request(&slice, 1);

  std::vector<std::unique_ptr<grpc::GenericStub>> stubs;
  for (int i = 0; i < std::min(num_connections, num_readers); ++i) {
    grpc::ChannelArguments own;
    own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stubs.push_back(std::make_unique<grpc::GenericStub>(
        grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), own)));
  }
  grpc::CompletionQueue queue;
  Seen seen;
  std::vector<std::unique_ptr<Reader>> readers;
  const std::int64_t began_at = now();
  for (int i = 0; i < num_readers; ++i) {
    readers.push_back(std::make_unique<Reader>(*stubs[static_cast<std::size_t>(i) % stubs.size()], queue, request, seen));
  }
  const auto never = [] { return false; };
  read_until(queue, after(wait), [&] { return seen.num_current == num_readers; });
  const double to_connect = 1e-9 * static_cast<double>(now() - began_at);
  double cores = 0;
  if (seen.num_current == num_readers) {
    read_until(queue, after(1), never);
    seen.counts = true;
    const double before = cpu_seconds();
    std::puts("counting");
    std::fflush(stdout);
    read_until(queue, after(seconds), never);
    cores = (cpu_seconds() - before) / seconds;
  }
  const auto ms = [&](double share) { return 1e-6 * seen.latency.quantile(share); };
  std::printf(
      "{\"readers\": %d, \"num_current\": %d, \"to_connect\": %.2f, \"steps\": %llu, \"p50_ms\": %.2f, \"p95_ms\": %.2f, "
      "\"p99_ms\": %.2f, \"cores\": %.3f}\n",
      num_readers, seen.num_current, to_connect, static_cast<unsigned long long>(seen.latency.count()), ms(0.5), ms(0.95),
      ms(0.99), cores);
  std::fflush(stdout);
  std::_Exit(0);  // the streams go with the process
}
