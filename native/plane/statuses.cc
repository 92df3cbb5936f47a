#include "plane/statuses.h"

#include <array>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <utility>
#include <vector>

#include "plane/wire/reader.h"
#include "plane/wire/writer.h"

namespace headrace::plane {
namespace {

using wire::Reader;
using wire::Scratch;
using wire::size_of_varint;
using wire::Tag;
using wire::WireType;

constexpr std::string_view kDomain = "headrace.dev";
constexpr std::string_view kTypePrefix = "type.googleapis.com/google.rpc.";
constexpr double kDrainingRetrySeconds = 2.0;
// What is longer is cut: details travel in trailers.
constexpr std::size_t kMessageBytes = 512;
constexpr std::size_t kTextBytes = 256;

using Metadata = std::initializer_list<std::pair<std::string_view, std::string>>;

void append_varint(std::string& to, std::uint64_t value) {
  std::byte bytes[10];
  wire::Writer writer(bytes, sizeof bytes);
  writer.varint(value);
  to.append(reinterpret_cast<const char*>(bytes), size_of_varint(value));
}

void append_number(std::string& to, std::uint32_t field, std::uint64_t value) {
  if (value == 0) return;
  append_varint(to, wire::tag_of(field, WireType::kVarint));
  append_varint(to, value);
}

void append_content(std::string& to, std::uint32_t field, std::string_view content) {
  append_varint(to, wire::tag_of(field, WireType::kLength));
  append_varint(to, content.size());
  to.append(content);
}

void append_text(std::string& to, std::uint32_t field, std::string_view text) {
  if (!text.empty()) append_content(to, field, text);
}

std::string cut(std::string_view text, std::size_t limit) {
  if (text.size() <= limit) return std::string(text);
  std::size_t end = limit - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return std::string(text.substr(0, end)) + "\xE2\x80\xA6";
}

// google.protobuf.Any
std::string any(std::string_view type, std::string_view value) {
  std::string message;
  append_content(message, 1, std::string(kTypePrefix) + std::string(type));
  append_text(message, 2, value);
  return message;
}

std::string error_info(std::string_view reason, Metadata metadata) {
  std::string message;
  append_text(message, 1, reason);
  append_text(message, 2, kDomain);
  for (const auto& [key, value] : metadata) {
    std::string entry;
    append_content(entry, 1, key);
    append_content(entry, 2, cut(value, kTextBytes));
    append_content(message, 3, entry);
  }
  return any("ErrorInfo", message);
}

std::string retry_info(double seconds) {
  // Python's timedelta counts whole microseconds.
  const std::int64_t micros = std::llrint(seconds * 1e6);
  std::string duration;
  append_number(duration, 1, static_cast<std::uint64_t>(micros / 1'000'000));
  append_number(duration, 2, static_cast<std::uint64_t>(micros % 1'000'000 * 1000));
  std::string message;
  append_content(message, 1, duration);
  return any("RetryInfo", message);
}

Status make(Code code, std::string_view message, std::initializer_list<std::string> details) {
  Status status{static_cast<int>(code), cut(message, kMessageBytes), {}};
  append_number(status.details, 1, static_cast<std::uint64_t>(code));
  append_text(status.details, 2, status.message);
  for (const std::string& detail : details) append_content(status.details, 3, detail);
  return status;
}

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

Status no_permit(const batching::Refusal& refusal, std::string_view version_name) {
  const std::string rows = std::to_string(refusal.waiting_rows);
  const std::string limit = std::to_string(refusal.limit);
  std::string message = rows + " rows already wait for " + std::string(version_name) + " (limit " + limit + ")";
  if (!refusal.why.empty()) message += ": " + refusal.why;
  return make(Code::kResourceExhausted, message,
              {error_info("NO_PERMIT", {{"model", std::string(version_name)}, {"waiting_rows", rows}, {"limit", limit}}),
               retry_info(refusal.retry_after_seconds)});
}

Status expired_in_queue(double queue_seconds) {
  const std::string ms = format("%.0f", queue_seconds * 1000);
  return make(Code::kDeadlineExceeded, "the deadline passed after " + ms + " ms in the queue",
              {error_info("EXPIRED_IN_QUEUE", {{"queue_ms", ms}})});
}

// The content of the first length-delimited field with this number; empty when there is none.
std::string find_content(std::string_view message, std::uint32_t field) {
  const std::vector<Piece> pieces{{reinterpret_cast<const std::byte*>(message.data()), message.size()}};
  Reader reader(pieces);
  while (!reader.is_at_end()) {
    Tag tag;
    Reader content;
    if (!reader.read_tag(tag)) return {};
    if (!tag.is(field, WireType::kLength)) {
      if (!reader.skip(tag.type)) return {};
      continue;
    }
    if (!reader.read_length(content)) return {};
    std::vector<Piece> found;
    content.append_to(found);
    return found.empty() ? std::string{} : std::string(reinterpret_cast<const char*>(found[0].data), found[0].size);
  }
  return {};
}

}  // namespace

Status status_of(const batching::Refusal& refusal, std::string_view version_name) {
  if (refusal.kind == batching::Refusal::Kind::kExpired) return expired_in_queue(refusal.queue_seconds);
  return no_permit(refusal, version_name);
}

Status timed_out(double timeout_seconds) {
  return make(Code::kDeadlineExceeded, "the request took longer than it may",
              {error_info("TIMED_OUT", {{"timeout_seconds", format("%g", timeout_seconds)}})});
}

Status draining() {
  return make(Code::kUnavailable, "the server is shutting down",
              {error_info("SERVER_DRAINING", {}), retry_info(kDrainingRetrySeconds)});
}

Status invalid_spec(std::string_view field, std::string_view description) {
  std::string violation;
  append_text(violation, 1, cut(field, kTextBytes));
  append_text(violation, 2, cut(description, kMessageBytes));
  std::string request;
  append_content(request, 1, violation);
  return make(Code::kInvalidArgument, std::string(field) + ": " + std::string(description),
              {error_info("INVALID_SPEC", {{"violations", "1"}}), any("BadRequest", request)});
}

Status cancelled() { return {static_cast<int>(Code::kCancelled), "the caller has gone", {}}; }

std::string encode(const Status& status) {
  if (!status.details.empty()) return status.details;
  return make(static_cast<Code>(status.code), status.message, {}).details;
}

std::string reason_of(std::string_view details) {
  const std::vector<Piece> pieces{{reinterpret_cast<const std::byte*>(details.data()), details.size()}};
  const std::string wanted = std::string(kTypePrefix) + "ErrorInfo";
  Reader reader(pieces);
  while (!reader.is_at_end()) {
    Tag tag;
    Reader content;
    if (!reader.read_tag(tag)) return {};
    if (!tag.is(3, WireType::kLength)) {
      if (!reader.skip(tag.type)) return {};
      continue;
    }
    if (!reader.read_length(content)) return {};
    std::vector<Piece> found;
    content.append_to(found);
    if (found.empty()) continue;
    const std::string_view detail(reinterpret_cast<const char*>(found[0].data), found[0].size);
    if (find_content(detail, 1) == wanted) return find_content(find_content(detail, 2), 1);
  }
  return {};
}

std::string_view name_of_code(int code) {
  static constexpr std::array<std::string_view, 17> kNames{
      "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
      "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
      "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"};
  const auto index = static_cast<std::size_t>(code);
  return code >= 0 && index < kNames.size() ? kNames[index] : "UNKNOWN";
}

std::string quote(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const bool has_double = text.find('"') != std::string_view::npos;
  const char mark = has_single && !has_double ? '"' : '\'';
  std::string quoted(1, mark);
  for (const char character : text) {
    const auto byte = static_cast<unsigned char>(character);
    if (character == mark || character == '\\') {
      quoted.push_back('\\');
      quoted.push_back(character);
    } else if (character == '\n') {
      quoted += "\\n";
    } else if (character == '\r') {
      quoted += "\\r";
    } else if (character == '\t') {
      quoted += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      char escape[5];
      std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned>(byte));
      quoted += escape;
    } else {
      quoted.push_back(character);
    }
  }
  quoted.push_back(mark);
  return quoted;
}

}  // namespace headrace::plane
