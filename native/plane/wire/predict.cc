#include "plane/wire/predict.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "plane/wire/contents.h"
#include "plane/wire/tensors.h"
#include "plane/wire/texts.h"

namespace headrace::plane::wire {
namespace {

constexpr int kHighestPriority = 100;
constexpr std::string_view kModels = "models/";
constexpr std::string_view kVersions = "/versions/";
constexpr std::int32_t kFormatUnspecified = 0;
constexpr std::int32_t kFormatBytes = 1;
constexpr std::int32_t kFormatValues = 2;
// The forms of a tensor's content, by the numbers of their fields.
constexpr std::uint32_t kData = 3;
constexpr std::uint32_t kFloats = 4;
constexpr std::uint32_t kInts = 5;
constexpr std::uint32_t kStrings = 6;
// The numbers of headrace.type.v1.DataType begin at 1 and are otherwise in the order of `Element`.
constexpr std::int32_t kFirstDataType = 1;
// DATA_TYPE_STRING, the last one.
constexpr std::int32_t kStringType = 16;

// As protobuf does: the lower half of what may have been sent as 64 bits.
std::int32_t as_int32(std::uint64_t value) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(value)); }

bool read_tensor(Reader message, Tensor& tensor, Scratch& scratch) {
  std::int32_t data_type = 0;
  std::uint32_t form = 0;
  Reader content;
  while (!message.is_at_end()) {
    Tag tag;
    if (!message.read_tag(tag)) return false;
    std::uint64_t value = 0;
    switch (tag.field) {
      case 1:
        if (tag.type != WireType::kVarint || !message.read_varint(value)) return false;
        data_type = as_int32(value);
        break;
      case 2:
        if (!read_lengths(tag, message, tensor.shape)) return false;
        break;
      case kData:
      case kFloats:
      case kInts:
      case kStrings:
        if (tag.type != WireType::kLength || form != 0 || !message.read_length(content)) return false;
        form = tag.field;
        break;
      default:
        if (!message.skip(tag.type)) return false;
    }
  }
  tensor.came_as_values = form != kData;
  if (data_type == kStringType) return form == kStrings && take_strings(content, tensor, scratch);
  const auto index = static_cast<std::int64_t>(data_type) - kFirstDataType;
  if (index < 0 || index >= static_cast<std::int64_t>(kElements.size())) return false;
  tensor.element = static_cast<Element>(index);
  switch (form) {
    case kData: return take_bytes(content, tensor);
    case kFloats: return take_floats(content, tensor);
    case kInts: return take_ints(content, tensor);
    default: return false;
  }
}

bool read_input(Reader entry, Question& question) {
  if (question.inputs.size() == kMostTensors) return false;
  Tensor tensor;
  bool has_name = false;
  std::optional<Reader> value;
  while (!entry.is_at_end()) {
    Tag tag;
    if (!entry.read_tag(tag)) return false;
    if (tag.is(1, WireType::kLength)) {
      if (has_name || !read_text(entry, question.scratch, kLongestName, tensor.name)) return false;
      has_name = true;
    } else if (tag.is(2, WireType::kLength)) {
      Reader content;
      if (value || !entry.read_length(content)) return false;
      value = content;
    } else {
      return false;
    }
  }
  if (!has_name || !value || !read_tensor(*value, tensor, question.scratch)) return false;
  // Of two entries of a map with the same key the last counts.
  const auto same = std::find_if(question.inputs.begin(), question.inputs.end(),
                                 [&](const Tensor& other) { return other.name == tensor.name; });
  if (same == question.inputs.end()) {
    question.inputs.push_back(std::move(tensor));
  } else {
    *same = std::move(tensor);
  }
  return true;
}

bool came_as_values(const Tensor& tensor) { return tensor.came_as_values; }

bool split_name(std::string_view name, Question& question) {
  if (name.substr(0, kModels.size()) != kModels) return false;
  name.remove_prefix(kModels.size());
  const std::size_t slash = name.find('/');
  question.model = name.substr(0, slash);
  question.version = {};
  if (slash == std::string_view::npos) return true;
  if (name.substr(slash, kVersions.size()) != kVersions) return false;
  question.version = name.substr(slash + kVersions.size());
  return !question.version.empty();
}

struct Duration {
  std::int64_t seconds = 0;
  std::int32_t nanos = 0;
};

// google.protobuf.Duration, on top of what came before.
bool read_duration(Reader message, Duration& duration) {
  while (!message.is_at_end()) {
    Tag tag;
    std::uint64_t value = 0;
    if (!message.read_tag(tag)) return false;
    if (tag.type != WireType::kVarint) {
      if (!message.skip(tag.type)) return false;
      continue;
    }
    if (!message.read_varint(value)) return false;
    if (tag.field == 1) duration.seconds = static_cast<std::int64_t>(value);
    if (tag.field == 2) duration.nanos = as_int32(value);
  }
  return true;
}

}  // namespace

bool read_predict(Reader message, Question& question) {
  std::int32_t format = kFormatUnspecified;
  std::string_view name;
  while (!message.is_at_end()) {
    Tag tag;
    if (!message.read_tag(tag)) return false;
    std::uint64_t value = 0;
    Reader content;
    switch (tag.field) {
      case 1:
        if (tag.type != WireType::kLength || !read_text(message, question.scratch, kLongestName, name)) return false;
        break;
      case 2:
        if (tag.type != WireType::kLength || !message.read_length(content) || !read_input(content, question)) {
          return false;
        }
        break;
      case 3:
        if (tag.type != WireType::kLength || question.output_names.size() == kMostTensors ||
            !read_text(message, question.scratch, kLongestName, question.output_names.emplace_back())) {
          return false;
        }
        break;
      case 4:
        if (tag.type != WireType::kVarint || !message.read_varint(value)) return false;
        format = as_int32(value);
        break;
      case 5:
        if (tag.type != WireType::kVarint || !message.read_varint(value)) return false;
        question.priority = as_int32(value);
        break;
      default:
        if (!message.skip(tag.type)) return false;
    }
  }
  if (format < kFormatUnspecified || format > kFormatValues) return false;
  question.is_raw = format == kFormatUnspecified
                        ? std::none_of(question.inputs.begin(), question.inputs.end(), came_as_values)
                        : format == kFormatBytes;
  if (question.priority < -kHighestPriority || question.priority > kHighestPriority) return false;
  return split_name(name, question);
}

bool read_stream_request(Reader message, StreamRequest& request) {
  Duration timeout;
  bool has_timeout = false;
  while (!message.is_at_end()) {
    Tag tag;
    if (!message.read_tag(tag)) return false;
    if (tag.type != WireType::kLength || tag.field > 3) {
      if (!message.skip(tag.type)) return false;
      continue;
    }
    Reader content;
    if (!message.read_length(content)) return false;
    if (tag.field == 1) {
      const std::optional<std::string_view> id = content.text(request.scratch, content.left());
      if (!id) return false;
      request.id = *id;
    } else if (tag.field == 2) {
      content.append_to(request.request);  // messages one after another are one message
    } else {
      if (!read_duration(content, timeout)) return false;
      has_timeout = true;
    }
  }
  if (has_timeout) request.timeout_seconds = static_cast<double>(timeout.seconds) + timeout.nanos / 1e9;
  return true;
}

}  // namespace headrace::plane::wire
