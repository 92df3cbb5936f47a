#include "plane/spans.h"

#include <chrono>
#include <cstring>
#include <random>
#include <utility>

namespace headrace::plane {
namespace {

std::int64_t now_nanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

int digit_of(char character) {
  if (character >= '0' && character <= '9') return character - '0';
  if (character >= 'a' && character <= 'f') return character - 'a' + 10;
  return -1;
}

bool read_hex(std::string_view text, std::uint8_t* to, std::size_t size) {
  if (text.size() != 2 * size) return false;
  for (std::size_t i = 0; i < size; ++i) {
    const int high = digit_of(text[2 * i]);
    const int low = digit_of(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    to[i] = static_cast<std::uint8_t>(high * 16 + low);
  }
  return true;
}

template <std::size_t size>
bool is_zero(const std::array<std::uint8_t, size>& id) {
  return id == std::array<std::uint8_t, size>{};
}

struct Parent {
  std::array<std::uint8_t, 16> trace_id{};
  std::array<std::uint8_t, 8> span_id{};
  bool is_sampled = false;
};

// version "-" trace-id "-" parent-id "-" flags; versions after 00 may have more behind.
std::optional<Parent> parse(std::string_view text) {
  constexpr std::size_t kSize = 55;
  if (text.size() < kSize || text[2] != '-' || text[35] != '-' || text[52] != '-') return std::nullopt;
  std::uint8_t version = 0;
  std::uint8_t flags = 0;
  Parent parent;
  if (!read_hex(text.substr(0, 2), &version, 1) || version == 0xFF) return std::nullopt;
  if (version == 0 ? text.size() != kSize : text.size() > kSize && text[kSize] != '-') return std::nullopt;
  if (!read_hex(text.substr(3, 32), parent.trace_id.data(), 16) || is_zero(parent.trace_id)) return std::nullopt;
  if (!read_hex(text.substr(36, 16), parent.span_id.data(), 8) || is_zero(parent.span_id)) return std::nullopt;
  if (!read_hex(text.substr(53, 2), &flags, 1)) return std::nullopt;
  parent.is_sampled = (flags & 1) != 0;
  return parent;
}

void fill(std::uint8_t* to) {
  const std::uint64_t bits = random_bits() | 1;  // an id of zeros is none
  std::memcpy(to, &bits, sizeof bits);
}

}  // namespace

std::uint64_t random_bits() {
  thread_local std::mt19937_64 generator{[] {
    std::random_device device;
    return (static_cast<std::uint64_t>(device()) << 32) | device();
  }()};
  return generator();
}

std::optional<Span> Spans::begin(Method method, const CallInfo& info) const {
  const double ratio = ratio_.load(std::memory_order_relaxed);
  if (ratio < 0) return std::nullopt;
  Span span;
  if (const std::optional<Parent> parent = parse(info.traceparent)) {
    if (!parent->is_sampled) return std::nullopt;
    span.trace_id = parent->trace_id;
    span.parent_id = parent->span_id;
    span.tracestate = info.tracestate;
  } else {
    constexpr double kAll = 18446744073709551616.0;  // 2^64
    if (static_cast<double>(random_bits()) >= ratio * kAll) return std::nullopt;
    fill(span.trace_id.data());
    fill(span.trace_id.data() + 8);
  }
  fill(span.span_id.data());
  span.method = method;
  span.started_at_nanos = now_nanos();
  return span;
}

void Spans::end(Span span) {
  span.ended_at_nanos = now_nanos();
  const std::lock_guard lock(mutex_);
  if (waiting_.size() >= kMostWaiting) {
    num_left_out_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  waiting_.push_back(std::move(span));
}

std::vector<Span> Spans::take() {
  std::vector<Span> taken;
  const std::lock_guard lock(mutex_);
  taken.swap(waiting_);
  return taken;
}

}  // namespace headrace::plane
