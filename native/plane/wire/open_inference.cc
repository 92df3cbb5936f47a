#include "plane/wire/open_inference.h"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "plane/wire/contents.h"
#include "plane/wire/tensors.h"
#include "plane/wire/texts.h"

namespace headrace::plane::wire {
namespace {

// The protocol counts downwards from the highest; kDefaultLevel is the engine's 0.
constexpr std::uint64_t kHighestLevel = 1;
constexpr std::uint64_t kLowestLevel = 201;
constexpr int kDefaultLevel = 101;
constexpr double kMicroseconds = 1e6;
constexpr std::string_view kText = "BYTES";
constexpr std::size_t kMostParameters = 64;
constexpr std::size_t kLongestText = 4096;

enum class ParameterKind : std::uint8_t { kNone, kBool, kInt64, kString, kDouble, kUint64 };

struct Parameter {
  std::string_view key;
  ParameterKind kind = ParameterKind::kNone;
  std::uint64_t number = 0;  // of kInt64 and kUint64
};

bool read_choice(Reader message, Scratch& scratch, Parameter& parameter) {
  while (!message.is_at_end()) {
    Tag tag;
    if (!message.read_tag(tag)) return false;
    std::uint64_t value = 0;
    std::string_view text;
    switch (tag.field) {
      case 1:
      case 2:
      case 5:
        if (tag.type != WireType::kVarint || !message.read_varint(value)) return false;
        break;
      case 3:
        if (tag.type != WireType::kLength || !read_text(message, scratch, kLongestText, text)) return false;
        break;
      case 4:
        if (tag.type != WireType::kFixed64 || !message.read_fixed64(value)) return false;
        break;
      default: return false;
    }
    parameter.kind = static_cast<ParameterKind>(tag.field);
    parameter.number = value;
  }
  return true;
}

bool read_parameter(Reader entry, Scratch& scratch, Parameter& parameter) {
  bool has_key = false;
  bool has_value = false;
  while (!entry.is_at_end()) {
    Tag tag;
    if (!entry.read_tag(tag)) return false;
    if (tag.is(1, WireType::kLength)) {
      if (has_key || !read_text(entry, scratch, kLongestText, parameter.key)) return false;
      has_key = true;
    } else if (tag.is(2, WireType::kLength)) {
      Reader value;
      if (has_value || !entry.read_length(value) || !read_choice(value, scratch, parameter)) return false;
      has_value = true;
    } else {
      return false;
    }
  }
  return has_key && has_value;
}

struct RequestParameters {
  bool has_priority = false;
  bool has_timeout = false;
  std::size_t num_seen = 0;
};

bool is_whole_number(const Parameter& parameter) {
  return parameter.kind == ParameterKind::kInt64 || parameter.kind == ParameterKind::kUint64;
}

bool take_parameter(const Parameter& parameter, RequestParameters& seen, Question& question) {
  if (++seen.num_seen > kMostParameters) return false;
  if (parameter.key == "priority") {
    if (seen.has_priority || !is_whole_number(parameter)) return false;
    seen.has_priority = true;
    if (parameter.number == 0) return true;
    if (parameter.number < kHighestLevel || parameter.number > kLowestLevel) return false;  // or negative
    question.priority = kDefaultLevel - static_cast<int>(parameter.number);
  } else if (parameter.key == "timeout") {
    if (seen.has_timeout || !is_whole_number(parameter)) return false;
    seen.has_timeout = true;
    if (parameter.kind == ParameterKind::kInt64 && static_cast<std::int64_t>(parameter.number) < 0) return false;
    if (parameter.number > 0) question.timeout_seconds = static_cast<double>(parameter.number) / kMicroseconds;
  } else if (parameter.key == "sequence_id") {
    return false;
  }
  return true;
}

struct InputMessage {
  std::string_view datatype;
  std::optional<Reader> contents;
};

bool read_input(Reader message, Question& question, InputMessage& input) {
  if (question.inputs.size() == kMostTensors) return false;
  Tensor& tensor = question.inputs.emplace_back();
  std::size_t num_parameters = 0;
  while (!message.is_at_end()) {
    Tag tag;
    if (!message.read_tag(tag)) return false;
    Reader content;
    if (tag.field == 3) {
      if (!read_lengths(tag, message, tensor.shape)) return false;
      continue;
    }
    if (tag.field > 5) {
      if (!message.skip(tag.type)) return false;
      continue;
    }
    if (tag.type != WireType::kLength || !message.read_length(content)) return false;
    std::optional<std::string_view> text;
    switch (tag.field) {
      case 1:
        if (!(text = content.text(question.scratch, kLongestName))) return false;
        tensor.name = *text;
        break;
      case 2:
        if (!(text = content.text(question.scratch, kLongestName))) return false;
        input.datatype = *text;
        break;
      case 4: {
        Parameter parameter;
        if (++num_parameters > kMostParameters || !read_parameter(content, question.scratch, parameter)) return false;
        if (parameter.key == "shared_memory_region") return false;
        break;
      }
      default:  // 5
        if (input.contents) return false;
        input.contents = content;
    }
  }
  return true;
}

bool read_output(Reader message, Question& question) {
  if (question.output_names.size() == kMostTensors) return false;
  std::string_view name;
  std::size_t num_parameters = 0;
  while (!message.is_at_end()) {
    Tag tag;
    if (!message.read_tag(tag)) return false;
    if (tag.is(1, WireType::kLength)) {
      if (!read_text(message, question.scratch, kLongestName, name)) return false;
    } else if (tag.is(2, WireType::kLength)) {
      Reader entry;
      Parameter parameter;
      if (++num_parameters > kMostParameters || !message.read_length(entry) ||
          !read_parameter(entry, question.scratch, parameter)) {
        return false;
      }
      if (parameter.key == "classification" || parameter.key == "shared_memory_region") return false;
    } else if (tag.field <= 2 || !message.skip(tag.type)) {
      return false;
    }
  }
  // Asked for twice is wrong.
  if (std::find(question.output_names.begin(), question.output_names.end(), name) != question.output_names.end()) {
    return false;
  }
  question.output_names.push_back(name);
  return true;
}

bool take_input(const InputMessage& input, const Reader* raw, Tensor& tensor, Scratch& scratch) {
  if (raw != nullptr && input.contents && !input.contents->is_at_end()) return false;
  if (input.datatype == kText) {
    if (raw != nullptr) return take_raw_texts(*raw, tensor, scratch);
    return input.contents && take_bytes_contents(*input.contents, tensor, scratch);
  }
  const std::optional<Element> element = element_named(input.datatype);
  if (!element) return false;
  tensor.element = *element;
  if (raw != nullptr) return take_bytes(*raw, tensor);
  return input.contents && take_contents(*input.contents, tensor);
}

}  // namespace

bool read_infer(Reader message, Question& question) {
  RequestParameters seen;
  std::vector<InputMessage> inputs;
  std::vector<Reader> raw;
  while (!message.is_at_end()) {
    Tag tag;
    if (!message.read_tag(tag)) return false;
    if (tag.field > 7) {
      if (!message.skip(tag.type)) return false;
      continue;
    }
    Reader content;
    if (tag.type != WireType::kLength || !message.read_length(content)) return false;
    std::optional<std::string_view> text;
    switch (tag.field) {
      case 1:
        if (!(text = content.text(question.scratch, kLongestName))) return false;
        question.model = *text;
        break;
      case 2:
        if (!(text = content.text(question.scratch, kLongestName))) return false;
        question.version = *text;
        break;
      case 3:
        if (!(text = content.text(question.scratch, kLongestText))) return false;
        question.id = *text;
        break;
      case 4: {
        Parameter parameter;
        if (!read_parameter(content, question.scratch, parameter) || !take_parameter(parameter, seen, question)) {
          return false;
        }
        break;
      }
      case 5:
        if (!read_input(content, question, inputs.emplace_back())) return false;
        break;
      case 6:
        if (!read_output(content, question)) return false;
        break;
      default:  // 7
        if (raw.size() == kMostTensors) return false;
        raw.push_back(content);
    }
  }
  if (!raw.empty() && raw.size() != inputs.size()) return false;
  question.is_raw = !raw.empty() || inputs.empty();
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!take_input(inputs[i], raw.empty() ? nullptr : &raw[i], question.inputs[i], question.scratch)) {
      return false;
    }
  }
  return true;
}

bool read_id(Reader message, std::string& id) {
  while (!message.is_at_end()) {
    Tag tag;
    if (!message.read_tag(tag)) return false;
    if (!tag.is(3, WireType::kLength)) {
      if (!message.skip(tag.type)) return false;
      continue;
    }
    Reader content;
    Scratch scratch;
    if (!message.read_length(content)) return false;
    const std::optional<std::string_view> text = content.text(scratch, content.left());
    if (!text) return false;
    id = *text;
  }
  return true;
}

bool read_model_question(Reader message, ModelQuestion& question) {
  while (!message.is_at_end()) {
    Tag tag;
    if (!message.read_tag(tag)) return false;
    if (tag.field > 2) {
      if (!message.skip(tag.type)) return false;
      continue;
    }
    std::string_view& part = tag.field == 1 ? question.model : question.version;
    if (tag.type != WireType::kLength || !read_text(message, question.scratch, kLongestName, part)) return false;
  }
  return true;
}

bool read_empty(Reader message) {
  while (!message.is_at_end()) {
    Tag tag;
    if (!message.read_tag(tag) || !message.skip(tag.type)) return false;
  }
  return true;
}

}  // namespace headrace::plane::wire
