#include "plane/answer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "plane/wire/contents.h"
#include "plane/wire/outputs.h"
#include "plane/wire/parameters.h"
#include "plane/wire/timing.h"

namespace headrace::plane {
namespace {

using wire::OutputHead;
using wire::Writer;

constexpr std::uint32_t kInferId = 3;
constexpr std::uint32_t kStreamId = 1;
constexpr std::uint32_t kStreamResponse = 2;
}  // namespace

void Answer::begin(Form form, const Version& version, std::string_view id, const std::vector<std::size_t>& outputs,
                   bool is_raw) {
  form_ = form;
  version_ = &version;
  id_ = id;
  is_raw_ = is_raw;
  places_.resize(outputs.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) places_[i].output = outputs[i];
}

void Answer::take(const batching::Share& share) noexcept {
  if (has_failed_) return;
  if (has_begun_) {
    has_failed_ = !still_fits(share);
  } else {
    has_begun_ = true;
    has_failed_ = !measure(share);
  }
  if (has_failed_) return;
  for (const Place& place : places_) {
    const batching::Output& output = share.outputs[place.output];
    if (share.is_whole) {
      std::memcpy(place.data, output.data, place.size_bytes);
    } else {
      std::memcpy(place.data + static_cast<std::size_t>(share.first) * place.row_bytes,
                  output.data + static_cast<std::size_t>(share.row) * place.row_bytes,
                  static_cast<std::size_t>(share.rows) * place.row_bytes);
    }
  }
}

// Learns sizes from the first slice, and makes room.
bool Answer::measure(const batching::Share& share) {
  bool is_typed = !is_raw_;
  for (Place& place : places_) {
    if (place.output >= share.outputs.size()) return false;
    const batching::Output& output = share.outputs[place.output];
    if (!output.element || (output.data == nullptr && output.size_bytes > 0)) return false;
    place.element = *output.element;
    place.shape = output.shape;
    place.size_bytes = output.size_bytes;
    if (!share.is_whole) {
      place.shape[0] = share.call_rows;
      place.row_bytes = output.row_bytes;
      place.size_bytes = static_cast<std::size_t>(share.call_rows) * output.row_bytes;
    }
    if (is_infer() && wire::contents_field(place.element) == 0) is_typed = false;  // one that travels raw makes all raw
    if (!is_infer() && is_typed && !wire::can_be_values(place.element)) return false;
  }
  is_raw_ = !is_typed;
  is_laid_out_late_ = !std::all_of(places_.begin(), places_.end(), [&](const Place& each) { return is_same_on_wire(each); });
  if (is_laid_out_late_) {
    for (Place& place : places_) {
      place.apart.reset(new std::byte[place.size_bytes]);
      place.data = place.apart.get();
    }
  } else {
    lay_out();
  }
  return true;
}

bool Answer::is_same_on_wire(const Place& place) const {
  return is_raw_ || (is_infer() && wire::is_same_in_typed_field(place.element));
}

bool Answer::still_fits(const batching::Share& share) const {
  return std::all_of(places_.begin(), places_.end(), [&](const Place& place) {
    const batching::Output& output = share.outputs[place.output];
    return !share.is_whole && output.element == place.element && output.row_bytes == place.row_bytes &&
           output.data != nullptr && output.shape.size() == place.shape.size() &&
           std::equal(output.shape.begin() + 1, output.shape.end(), place.shape.begin() + 1);
  });
}

std::size_t Answer::largest_tail() const {
  std::size_t provenance = 0;
  for (const Provenance& each : version_->provenance) {
    provenance = std::max(provenance, is_infer() ? each.infer.size() : each.predict.size());
  }
  return provenance + wire::size_of_field(kInferId, id_.size()) + wire::kFinalResponse.size() + wire::kLargestTiming;
}

OutputHead Answer::head_of(const Place& place) const {
  OutputHead head{version_->outputs[place.output].name, place.element, place.shape, place.size_bytes};
  if (is_same_on_wire(place)) return head;
  if (is_infer()) {
    head.content = wire::size_of_varints(place.element, place.data, place.size_bytes);
  } else {
    head.form = wire::form_of_values(place.element, place.data, place.size_bytes);
    head.content = wire::size_of_values(head.form, place.element, place.data, place.size_bytes);
  }
  return head;
}

// Makes the block and writes the outputs; elements that come later only get their room.
void Answer::lay_out() {
  std::vector<OutputHead> heads;
  heads.reserve(places_.size());
  body_ = 0;
  for (const Place& place : places_) {
    const OutputHead& head = heads.emplace_back(head_of(place));
    if (!is_infer()) {
      body_ += wire::size_of_predict_output(head);
    } else if (is_raw_) {
      body_ += wire::size_of_infer_output(head) + wire::size_of_raw_output(head.content);
    } else {
      body_ += wire::size_of_typed_output(head);
    }
  }
  const std::size_t most = body_ + largest_tail();
  prefix_ = size_of_prefix(most);
  block_ = Block(prefix_ + most);
  Writer writer(block_.data() + prefix_, body_);
  if (is_infer() && is_raw_) {
    for (const OutputHead& head : heads) wire::write_infer_output(writer, head);
  }
  for (std::size_t i = 0; i < places_.size(); ++i) {
    Place& place = places_[i];
    std::byte* data = nullptr;
    if (!is_infer()) {
      data = wire::write_predict_output(writer, heads[i]);
    } else if (is_raw_) {
      data = wire::write_raw_output(writer, heads[i].content);
    } else {
      data = wire::write_typed_output(writer, heads[i]);
    }
    if (place.apart == nullptr) {
      place.data = data;
    } else if (is_same_on_wire(place)) {
      std::memcpy(data, place.apart.get(), place.size_bytes);
    } else if (!is_infer()) {
      wire::write_values(heads[i].form, place.element, place.apart.get(), place.size_bytes, data);
    } else {
      wire::write_varints(place.element, place.apart.get(), place.size_bytes, data);
    }
  }
}

Block Answer::finish(const batching::Timing& timing, double respond_seconds) noexcept {
  if (!has_begun_ || has_failed_) return {};
  if (is_laid_out_late_) lay_out();
  std::byte* start = block_.data() + prefix_;
  Writer tail(start + body_, block_.size() - prefix_ - body_);
  write_tail(tail, timing, respond_seconds);
  const auto inner = static_cast<std::size_t>(tail.at() - start);
  if (is_stream()) {
    const std::size_t prefix = size_of_prefix(inner);
    if (prefix != prefix_) std::memmove(block_.data() + prefix, start, inner);  // a byte less for the length; rare
    Writer head(block_.data(), prefix);
    write_prefix(head, inner);
    block_.shrink(prefix + inner);
  } else {
    block_.shrink(inner);
  }
  return std::move(block_);
}

void Answer::write_tail(Writer& writer, const batching::Timing& timing, double respond_seconds) const {
  const auto variant = static_cast<std::size_t>(timing.variant);
  const Provenance& provenance = version_->provenance[variant < version_->provenance.size() ? variant : 0];
  if (!is_infer()) {
    writer.bytes(provenance.predict.data(), provenance.predict.size());
    wire::write_predict_timing(writer, timing, respond_seconds);
    return;
  }
  writer.bytes(provenance.infer.data(), provenance.infer.size());
  if (!id_.empty()) writer.text(kInferId, id_);
  wire::write_infer_timing(writer, timing, respond_seconds);
  if (form_ == Form::kInferStream) writer.bytes(wire::kFinalResponse.data(), wire::kFinalResponse.size());
}

std::size_t Answer::size_of_prefix(std::size_t inner) const {
  if (!is_stream()) return 0;
  const std::size_t id = form_ == Form::kPredictStream && !id_.empty() ? wire::size_of_field(kStreamId, id_.size()) : 0;
  return id + wire::size_of_tag(kStreamResponse) + wire::size_of_varint(inner);
}

void Answer::write_prefix(Writer& writer, std::size_t inner) const {
  if (form_ == Form::kPredictStream && !id_.empty()) writer.text(kStreamId, id_);
  writer.length(kStreamResponse, inner);
}

}  // namespace headrace::plane
