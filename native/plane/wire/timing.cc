#include "plane/wire/timing.h"

#include <cmath>
#include <cstdint>

#include "plane/wire/parameters.h"

namespace headrace::plane::wire {
namespace {

constexpr std::int64_t kNanos = 1'000'000'000;
constexpr double kMicros = 1e6;

// google.protobuf.Duration
struct Span {
  std::uint64_t seconds = 0;
  std::uint64_t nanos = 0;

  explicit Span(double span_seconds) {
    // Rounds halves to even, as Python does; a clock that is read on two threads may seem to step back.
    const auto total = static_cast<std::int64_t>(std::llrint(std::fmax(span_seconds, 0.0) * static_cast<double>(kNanos)));
    seconds = static_cast<std::uint64_t>(total / kNanos);
    nanos = static_cast<std::uint64_t>(total % kNanos);
  }

  std::size_t size() const {
    return (seconds != 0 ? size_of_varint_field(1, seconds) : 0) + (nanos != 0 ? size_of_varint_field(2, nanos) : 0);
  }

  void write(Writer& writer) const {
    if (seconds != 0) writer.varint_field(1, seconds);
    if (nanos != 0) writer.varint_field(2, nanos);
  }
};

std::uint64_t micros(double seconds) {
  return static_cast<std::uint64_t>(std::llrint(std::fmax(seconds, 0.0) * kMicros));
}

}  // namespace

void write_predict_timing(Writer& writer, const batching::Timing& timing, double respond_seconds) {
  const Span spans[] = {Span(timing.queue_seconds), Span(timing.assemble_seconds), Span(timing.compute_seconds),
                        Span(respond_seconds)};
  const auto rows = static_cast<std::uint64_t>(timing.batch_rows);
  const auto calls = static_cast<std::uint64_t>(timing.batch_calls);
  std::size_t size = size_of_varint_field(5, rows) + size_of_varint_field(6, calls);
  for (const Span& span : spans) size += size_of_field(1, span.size());
  writer.length(3, size);
  std::uint32_t field = 1;
  for (const Span& span : spans) {
    writer.length(field++, span.size());
    span.write(writer);
  }
  writer.varint_field(5, rows);
  writer.varint_field(6, calls);
}

void write_infer_timing(Writer& writer, const batching::Timing& timing, double respond_seconds) {
  write_number_parameter(writer, "headrace_queue_us", micros(timing.queue_seconds));
  write_number_parameter(writer, "headrace_assemble_us", micros(timing.assemble_seconds));
  write_number_parameter(writer, "headrace_compute_us", micros(timing.compute_seconds));
  write_number_parameter(writer, "headrace_respond_us", micros(respond_seconds));
  write_number_parameter(writer, "headrace_batch_rows", static_cast<std::uint64_t>(timing.batch_rows));
}

}  // namespace headrace::plane::wire
