#include "door/slices.h"

#include <grpcpp/support/slice.h>

#include <memory>
#include <vector>

namespace headrace::door {
namespace {

// gRPC destroys what a slice points to with one argument: here a copy of the owner.
void let_go(void* owner) { delete static_cast<std::shared_ptr<const void>*>(owner); }

}  // namespace

plane::Bytes bytes_of(const grpc::ByteBuffer& message) {
  auto slices = std::make_shared<std::vector<grpc::Slice>>();
  plane::Bytes bytes;
  if (!message.Dump(slices.get()).ok()) return bytes;  // a message without any content
  bytes.pieces.reserve(slices->size());
  for (const grpc::Slice& slice : *slices) {
    if (slice.size() > 0) bytes.pieces.push_back({reinterpret_cast<const std::byte*>(slice.begin()), slice.size()});
  }
  bytes.owner = std::move(slices);
  return bytes;
}

grpc::ByteBuffer message_of(plane::Block block) {
  const std::size_t size = block.size();
  if (size == 0) return message_of(plane::Bytes());
  const grpc::Slice slice(block.release(), size, &plane::Block::destroy);
  return grpc::ByteBuffer(&slice, 1);
}

grpc::ByteBuffer message_of(const plane::Bytes& bytes) {
  std::vector<grpc::Slice> slices;
  slices.reserve(bytes.pieces.size() + 1);
  for (const plane::Piece& piece : bytes.pieces) {
    // gRPC does not write to what it is told to own.
    void* data = const_cast<void*>(static_cast<const void*>(piece.data));
    slices.emplace_back(data, piece.size, &let_go, new std::shared_ptr<const void>(bytes.owner));
  }
  if (slices.empty()) slices.emplace_back();
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace headrace::door
