// Messages as the network delivers them: pieces of memory that somebody else owns.
//
// The plane reads requests where they lie and writes each answer into one block.  It knows gRPC's slices only as this.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "batching/call.h"

namespace headrace::plane {

using batching::Piece;

// One message.  The pieces stay as they are while any copy of `owner` lives.
struct Bytes {
  std::shared_ptr<const void> owner;
  std::vector<Piece> pieces;

  std::size_t size() const {
    std::size_t total = 0;
    for (const Piece& piece : pieces) total += piece.size;
    return total;
  }
};

// Memory that is written once and then handed on.  Whoever takes `release()` frees it with `Block::destroy`.
class Block {
 public:
  Block() = default;
  explicit Block(std::size_t size) : data_(size > 0 ? new std::byte[size] : nullptr), size_(size) {}
  Block(Block&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Block& operator=(Block&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { destroy(data_); }

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

  // Gives up the end of it.
  void shrink(std::size_t size) { size_ = size < size_ ? size : size_; }

  std::byte* release() {
    size_ = 0;
    return std::exchange(data_, nullptr);
  }
  static void destroy(void* data) { delete[] static_cast<std::byte*>(data); }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace headrace::plane
