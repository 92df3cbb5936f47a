// A thread that makes compressed messages readable, so that callers who do not compress never wait for those who do: what
// takes a caller a kilobyte to send may take a processor milliseconds to inflate.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "door/inflation.h"

namespace headrace::door {

class Unpacker {
 public:
  // Told how it went, on the unpacker's thread.
  using Tell = std::function<void(Inflated)>;

  // `inflation` outlives it.
  explicit Unpacker(const Inflation& inflation) : inflation_(inflation) {}
  // Nothing is under way any more.
  ~Unpacker();
  Unpacker(const Unpacker&) = delete;
  Unpacker& operator=(const Unpacker&) = delete;

  // Makes a message readable, in its place; nobody else touches it until `tell` is called.  Any thread.
  void start(grpc::ByteBuffer& message, Tell tell);

 private:
  struct Parcel {
    grpc::ByteBuffer* message = nullptr;
    Tell tell;
  };

  void run();

  const Inflation& inflation_;
  std::mutex mutex_;
  std::condition_variable bell_;
  std::deque<Parcel> parcels_;  // no more than there are calls
  bool is_over_ = false;
  std::thread thread_;  // from the first parcel on
};

}  // namespace headrace::door
