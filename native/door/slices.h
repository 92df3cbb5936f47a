// gRPC's messages as the plane knows them, without copying.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include "plane/bytes.h"

namespace headrace::door {

plane::Bytes bytes_of(const grpc::ByteBuffer& message);
grpc::ByteBuffer message_of(plane::Block block);
grpc::ByteBuffer message_of(const plane::Bytes& bytes);

}  // namespace headrace::door
