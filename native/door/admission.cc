#include "door/admission.h"

#include <string>

namespace headrace::door {
namespace {

constexpr std::size_t kFieldOverhead = 32;  // RFC 9113, section 6.5.2

std::size_t size_of_metadata(const grpc::CallbackServerContext& caller) {
  std::size_t size = 0;
  for (const auto& [key, value] : caller.client_metadata()) size += key.length() + value.length() + kFieldOverhead;
  return size;
}

grpc::Status refused(const std::string& why) { return {grpc::StatusCode::RESOURCE_EXHAUSTED, why}; }

}  // namespace

std::optional<grpc::Status> Admission::enter(const grpc::CallbackServerContext& caller) {
  if (const std::size_t size = size_of_metadata(caller); size > kMaxMetadataBytes) {
    return refused("the metadata has " + std::to_string(size) + " bytes, more than " +
                   std::to_string(kMaxMetadataBytes));
  }
  if (count_.fetch_add(1, std::memory_order_relaxed) < limit_) return std::nullopt;
  leave();
  return refused("the server has as many calls under way as it takes; try again later");
}

}  // namespace headrace::door
