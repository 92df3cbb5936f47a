#include "tally.h"

#include <cstdint>
#include <string_view>

namespace load {
namespace {

const char* name_of(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {
      "OK",        "CANCELLED",         "UNKNOWN",   "INVALID_ARGUMENT",    "DEADLINE_EXCEEDED", "NOT_FOUND",
      "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
      "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"};
  const auto index = static_cast<std::size_t>(code);
  return index < std::size(kNames) ? kNames[index] : "UNKNOWN";
}

bool read_varint(std::string_view& text, std::uint64_t& value) {
  value = 0;
  for (int shift = 0; shift < 64 && !text.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(text.front());
    text.remove_prefix(1);
    value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

// Calls `see(number, bytes)` for each length-delimited field of a message, until it is malformed or at its end.
template <class See>
void each_field(std::string_view message, See see) {
  std::uint64_t key = 0, value = 0;
  while (read_varint(message, key)) {
    switch (key & 7) {
      case 0:
        if (!read_varint(message, value)) return;
        break;
      case 2:
        if (!read_varint(message, value) || value > message.size()) return;
        see(key >> 3, message.substr(0, value));
        message.remove_prefix(value);
        break;
      default:
        return;  // nothing else occurs in google.rpc.Status, Any or ErrorInfo
    }
  }
}

// google.rpc.Status{details = 3: Any{type_url = 1, value = 2: ErrorInfo{reason = 1}}}
std::string error_info_reason(std::string_view status) {
  std::string reason;
  each_field(status, [&](std::uint64_t number, std::string_view any) {
    if (number != 3) return;
    bool is_error_info = false;
    each_field(any, [&](std::uint64_t field, std::string_view bytes) {
      if (field == 1) is_error_info = bytes == "type.googleapis.com/google.rpc.ErrorInfo";
      if (field != 2 || !is_error_info) return;
      each_field(bytes, [&](std::uint64_t inner, std::string_view text) {
        if (inner == 1) reason = text;
      });
    });
  });
  return reason;
}

// See Tally::reasons.
std::string kind_of(const grpc::Status& status) {
  const std::string name = name_of(status.error_code());
  const std::string reason = error_info_reason(status.error_details());
  if (!reason.empty()) return name + "/" + reason;
  // The words with which gRPC's own core says that a call was never sent.
  const bool was_sent = status.error_message().rfind("failed to connect to all addresses", 0) != 0;
  return was_sent ? name : name + "/(not connected)";
}

}  // namespace

void Tally::note(const grpc::Status& status, std::uint64_t bytes, std::int64_t latency) {
  if (status.ok()) {
    answers.add(latency);
    least_bytes = std::min(least_bytes, bytes);
    most_bytes = std::max(most_bytes, bytes);
    return;
  }
  errors.add(latency);
  const auto kind = kind_of(status);
  ++reasons[kind];
  first_messages.emplace(kind, status.error_message());
}

void Tally::add(const Tally& other) {
  answers.add(other.answers);
  errors.add(other.errors);
  for (const auto& [reason, count] : other.reasons) reasons[reason] += count;
  first_messages.insert(other.first_messages.begin(), other.first_messages.end());
  least_bytes = std::min(least_bytes, other.least_bytes);
  most_bytes = std::max(most_bytes, other.most_bytes);
  good += other.good;
}

}  // namespace load
