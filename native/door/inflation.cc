#include "door/inflation.h"

#include <grpc/impl/codegen/grpc_types.h>
#include <grpc/slice.h>
#include <zlib.h>

#include <algorithm>
#include <utility>

// Whether a message is compressed is known to gRPC's C face and not to its C++ face, which has this name for a friend.
namespace grpc::internal {
class GrpcByteBufferPeer {
 public:
  static const grpc_byte_buffer* behind(ByteBuffer& message) { return message.c_buffer(); }
};
}  // namespace grpc::internal

namespace headrace::door {
namespace {

using Room = Inflation::Room;

constexpr std::size_t kSmallestBlock = std::size_t{16} << 10;
constexpr std::size_t kLargestBlock = std::size_t{1} << 20;
// For `inflateInit2`: the largest window that there is, and what asks for gzip's header instead of zlib's.
constexpr int kWindowBits = 15;
constexpr int kGzipHeader = 16;

grpc_compression_algorithm algorithm_of(grpc::ByteBuffer& message) {
  const grpc_byte_buffer* buffer = grpc::internal::GrpcByteBufferPeer::behind(message);
  return buffer != nullptr && buffer->type == GRPC_BB_RAW ? buffer->data.raw.compression : GRPC_COMPRESS_NONE;
}

grpc::Slice first_of(const grpc::Slice& slice, std::size_t size) {
  if (size == 0) return {};
  return {grpc_slice_sub_no_ref(slice.c_slice(), 0, size), grpc::Slice::STEAL_REF};
}

struct Block {
  Block(std::shared_ptr<Room> taken_from, std::size_t bytes)
      : room(std::move(taken_from)), size(bytes), data(new Bytef[bytes]) {}
  ~Block() { room->give_back(size); }

  static void destroy(void* block) { delete static_cast<Block*>(block); }

  const std::shared_ptr<Room> room;
  const std::size_t size;
  const std::unique_ptr<Bytef[]> data;
};

// What a message becomes.  Blocks grow with it, so that a small one takes little.
class Output {
 public:
  Output(std::shared_ptr<Room> room, std::size_t most) : room_(std::move(room)), most_(most) {}

  // A block for `state` to write to, after one that is full.  There is one byte more than there may be: whoever needs it
  // is too large.
  Inflated grow(z_stream& state) {
    if (size_ > most_) return Inflated::kTooLarge;
    const std::size_t step = std::min(std::clamp(size_, kSmallestBlock, kLargestBlock), most_ + 1 - size_);
    if (!room_->take(step)) return Inflated::kNoRoom;
    auto* block = new Block(room_, step);
    blocks_.emplace_back(block->data.get(), step, &Block::destroy, block);
    size_ += step;
    state.next_out = block->data.get();
    state.avail_out = static_cast<uInt>(step);
    return Inflated::kReadable;
  }

  // All that was written, when nothing was to the last `unused` bytes.
  Inflated finish(std::size_t unused, grpc::ByteBuffer& message) {
    if (size_ - unused > most_) return Inflated::kTooLarge;
    const std::size_t used = blocks_.back().size() - unused;
    blocks_.back() = first_of(blocks_.back(), used);
    message = grpc::ByteBuffer(blocks_.data(), blocks_.size());
    return Inflated::kReadable;
  }

 private:
  const std::shared_ptr<Room> room_;
  const std::size_t most_;
  std::vector<grpc::Slice> blocks_;
  std::size_t size_ = 0;  // of all blocks
};

class Inflater {
 public:
  explicit Inflater(bool is_gzip) : is_ready_(inflateInit2(&state_, kWindowBits + (is_gzip ? kGzipHeader : 0)) == Z_OK) {}
  ~Inflater() {
    if (is_ready_) inflateEnd(&state_);
  }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  Inflated run(const std::vector<grpc::Slice>& pieces, Output& output, grpc::ByteBuffer& message) {
    if (!is_ready_) return Inflated::kNoRoom;
    for (const grpc::Slice& piece : pieces) {
      const Inflated outcome = take(piece, output);
      if (outcome != Inflated::kReadable) return outcome;
    }
    return has_ended_ ? output.finish(state_.avail_out, message) : Inflated::kMalformed;
  }

 private:
  Inflated take(const grpc::Slice& piece, Output& output) {
    state_.next_in = const_cast<Bytef*>(piece.begin());
    state_.avail_in = static_cast<uInt>(piece.size());
    // A full block may leave something to be written although everything was read.
    while (!has_ended_ && (state_.avail_in > 0 || state_.avail_out == 0)) {
      if (state_.avail_out == 0) {
        const Inflated outcome = output.grow(state_);
        if (outcome != Inflated::kReadable) return outcome;
      }
      const int outcome = ::inflate(&state_, Z_NO_FLUSH);
      if (outcome == Z_MEM_ERROR) return Inflated::kNoRoom;
      if (outcome != Z_OK && outcome != Z_STREAM_END && outcome != Z_BUF_ERROR) return Inflated::kMalformed;
      has_ended_ = outcome == Z_STREAM_END;
    }
    return state_.avail_in == 0 ? Inflated::kReadable : Inflated::kMalformed;
  }

  z_stream state_{};
  const bool is_ready_;
  bool has_ended_ = false;
};

}  // namespace

bool Inflation::Room::take(std::size_t bytes) {
  if (taken_.fetch_add(bytes, std::memory_order_relaxed) + bytes <= size_) return true;
  give_back(bytes);
  return false;
}

bool Inflation::is_compressed(grpc::ByteBuffer& message) {
  return algorithm_of(message) != GRPC_COMPRESS_NONE && message.Length() > 0;
}

Inflated Inflation::open(grpc::ByteBuffer& message) const {
  if (!is_compressed(message)) {
    return message.Length() > max_message_bytes_ ? Inflated::kTooLarge : Inflated::kReadable;
  }
  std::vector<grpc::Slice> pieces;
  if (!message.Dump(&pieces).ok()) return Inflated::kMalformed;
  return inflate(pieces, algorithm_of(message) == GRPC_COMPRESS_GZIP, message);
}

Inflated Inflation::inflate(const std::vector<grpc::Slice>& pieces, bool is_gzip, grpc::ByteBuffer& message) const {
  Output output(room_, max_message_bytes_);
  return Inflater(is_gzip).run(pieces, output, message);
}

}  // namespace headrace::door
