#include "door/admission.h"

#include <string>

#include "door/metadata.h"
#include "door/onward.h"
#include "plane/call_record.h"

namespace headrace::door {
namespace {

constexpr std::size_t kFieldOverhead = 32;  // RFC 9113, section 6.5.2

std::size_t size_of_metadata(const Caller& caller) {
  std::size_t size = 0;
  for (const auto& [key, value] : caller.client_metadata()) size += key.length() + value.length() + kFieldOverhead;
  return size;
}

}  // namespace

grpc::Status refuse(Caller& caller, const plane::Status& status) {
  caller.AddTrailingMetadata(kRequestId, plane::request_id_of(value_of(caller, kRequestId)));
  return status_of(status);
}

std::optional<grpc::Status> Admission::enter(Caller& caller) {
  if (size_of_metadata(caller) > static_cast<std::size_t>(options_.max_metadata_bytes)) {
    return refuse(caller, options_.too_much_metadata);
  }
  if (count_.fetch_add(1, std::memory_order_relaxed) < options_.max_concurrent_calls) return std::nullopt;
  leave();
  return refuse(caller, options_.too_many_calls);
}

const plane::Status* Admission::refusal_of(Inflated outcome) const {
  switch (outcome) {
    case Inflated::kTooLarge: return &options_.too_large;
    case Inflated::kNoRoom: return &options_.no_room;
    case Inflated::kMalformed: return &options_.malformed;
    default: return nullptr;
  }
}

}  // namespace headrace::door
