// Messages that callers have compressed, made readable within bounds.
//
// gRPC would do it itself, but looks at the size of a message only before: 64 KiB of gzip become 64 MiB, and a few
// thousand of those more than a machine has.  So it is told to leave messages as they come, and they are inflated here
// block by block, never beyond what one message may have, nor beyond what all of them together may have.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace headrace::door {

enum class Inflated : std::uint8_t {
  kReadable,   // inflated, or never compressed
  kTooLarge,   // more than a message may have
  kNoRoom,     // others that were compressed hold all the memory that there is for them
  kMalformed,  // it is not what it is called, or something follows it
};

class Inflation {
 public:
  // Bytes of one message, and of all that were inflated here and are not yet let go of.
  Inflation(std::size_t max_message_bytes, std::size_t max_total_bytes)
      : max_message_bytes_(max_message_bytes), room_(std::make_shared<Room>(max_total_bytes)) {}

  static bool is_compressed(grpc::ByteBuffer& message);
  // Makes a message readable, in its place.  Any thread.
  Inflated open(grpc::ByteBuffer& message) const;
  // What these bytes were before they were compressed, with the header of gzip or that of zlib.
  Inflated inflate(const std::vector<grpc::Slice>& pieces, bool is_gzip, grpc::ByteBuffer& message) const;

  // What inflated messages hold just now.
  std::size_t bytes() const { return room_->taken(); }

  // Kept by whatever was inflated, which gRPC may hold longer than the door lives.
  class Room {
   public:
    explicit Room(std::size_t size) : size_(size) {}

    bool take(std::size_t bytes);
    void give_back(std::size_t bytes) { taken_.fetch_sub(bytes, std::memory_order_relaxed); }
    std::size_t taken() const { return taken_.load(std::memory_order_relaxed); }

   private:
    const std::size_t size_;
    std::atomic<std::size_t> taken_{0};
  };

 private:
  const std::size_t max_message_bytes_;
  const std::shared_ptr<Room> room_;
};

}  // namespace headrace::door
