#include "door/relay.h"

#include <grpc/slice.h>
#include <grpc/support/time.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "door/metadata.h"

namespace headrace::door {
namespace {

constexpr std::size_t kHeaderBytes = 8;
constexpr unsigned kKindBits = 2;
// What is kept for readers who are behind.
constexpr std::size_t kMostEntries = 1024;
constexpr std::size_t kMostBytes = 4 << 20;
// A message costs the thread a few microseconds.
constexpr std::size_t kReadersAtATime = 64;

// Takes a number and the space after it off the beginning of a text.
std::optional<std::int64_t> take_number(std::string_view& text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const auto length = static_cast<std::size_t>(end - text.data());
  if (error != std::errc() || number < 0 || length >= text.size() || *end != ' ') return std::nullopt;
  text.remove_prefix(length + 1);
  return number;
}

}  // namespace

std::optional<Share> Share::parse(std::string_view word) {
  const auto after = take_number(word);
  const auto period = after ? take_number(word) : std::nullopt;
  const auto wait = period ? take_number(word) : std::nullopt;
  if (!wait || word.empty()) return std::nullopt;
  return Share{*after, std::chrono::microseconds(*period), std::chrono::microseconds(*wait), std::string(word)};
}

std::optional<Entry> read_entry(const grpc::ByteBuffer& message) {
  grpc::Slice whole;
  if (!message.DumpToSingleSlice(&whole).ok() || whole.size() < kHeaderBytes) return std::nullopt;
  std::uint64_t header = 0;
  for (std::size_t i = kHeaderBytes; i-- > 0;) header = header << 8 | whole.begin()[i];
  const std::uint64_t kind = header & ((1U << kKindBits) - 1);
  if (kind > static_cast<std::uint64_t>(Kind::kStep)) return std::nullopt;
  const grpc_slice bare = whole.c_slice();
  const grpc::Slice rest(grpc_slice_sub(bare, kHeaderBytes, whole.size()), grpc::Slice::STEAL_REF);
  grpc_slice_unref(bare);
  return Entry{static_cast<std::int64_t>(header >> kKindBits), static_cast<Kind>(kind), grpc::ByteBuffer(&rest, 1)};
}

void Relay::begin(const std::string& method, const grpc::ByteBuffer& request, std::int64_t after) {
  itself_ = shared_from_this();
  request_ = request;
  context_.AddMetadata(std::string(kShared), std::to_string(after));
  start(onward_.stub(), queue_, context_, method, 1);
  StartWrite(&request_);
}

// The stream.

void Relay::OnReadInitialMetadataDone(bool /*ok*/) { StartRead(&received_); }

void Relay::OnWriteDone(bool ok) {
  if (ok) StartWritesDone();
}

void Relay::OnReadDone(bool ok) {
  if (!ok) return RemoveHold();
  std::optional<Entry> entry = read_entry(received_);
  received_.Clear();
  if (entry) {
    keep(std::move(*entry));
    get_all_on();
  }
  StartRead(&received_);
}

void Relay::OnDone(const grpc::Status& status) {
  const std::shared_ptr<Relay> itself = std::move(itself_);
  ending_ = status;
  get_all_on();
}

void Relay::keep(Entry entry) {
  if (!has_begun_ && entry.kind != Kind::kSign) {
    has_begun_ = true;
    since_ = entry.place - 1;
    for (Reader* reader : readers_) reader->is_late_ = reader->after_ < since_;
  }
  kept_bytes_ += entry.message.Length();
  kept_.push_back(std::move(entry));
  while (kept_.size() > kMostEntries || (kept_bytes_ > kMostBytes && kept_.size() > 1)) {
    const Entry& oldest = kept_.front();
    kept_bytes_ -= oldest.message.Length();
    since_ = std::max(since_, oldest.place);
    kept_.pop_front();
    ++first_;
  }
}

// Its readers.

bool Relay::join(Reader& reader, const Share& share) {
  if (has_begun_ && share.after < since_) return false;
  reader.seat_ = readers_.size();
  reader.after_ = share.after;
  reader.is_writing_ = reader.is_late_ = false;
  reader.period_ = share.period;
  reader.due_at_ = Clock::now() + share.wait;
  reader.held_.reset();
  const auto next = std::find_if(kept_.begin(), kept_.end(), [&](const Entry& kept) { return kept.place > share.after; });
  reader.next_ = first_ + static_cast<std::uint64_t>(next - kept_.begin());
  readers_.push_back(&reader);
  get_on(reader, Clock::now());
  return true;
}

void Relay::has_written(Reader& reader) {
  const std::shared_ptr<Relay> itself = shared_from_this();  // he may be the last who holds it
  reader.is_writing_ = false;
  get_on(reader, Clock::now());
}

void Relay::leave(Reader& reader) { give_seat_up(reader); }

void Relay::get_all_on() {
  num_to_get_on_ = readers_.size();
  get_some_on();
}

void Relay::get_some_on() {
  const auto now = Clock::now();
  for (std::size_t count = 0; num_to_get_on_ > 0 && count < kReadersAtATime; ++count) {
    if (turn_ >= readers_.size()) turn_ = 0;
    --num_to_get_on_;
    if (get_on(*readers_[turn_], now)) ++turn_;
  }
  if (num_to_get_on_ > 0) wake_at(now);
}

bool Relay::get_on(Reader& reader, Clock::time_point now) {
  if (reader.is_writing_) return true;
  if (reader.is_late_ || reader.next_ < first_) {
    give_seat_up(reader);
    reader.ask_again(reader.after_);
    return false;
  }
  if (const auto entry = take(reader, now)) {
    write(reader, *entry);
    return true;
  }
  if (reader.held_) {
    held_until_ = std::min(held_until_, reader.due_at_);
    wake_at(held_until_);
  }
  if (!ending_) return true;
  give_seat_up(reader);
  reader.end(*ending_, context_);
  return false;
}

std::optional<Entry> Relay::take(Reader& reader, Clock::time_point now) {
  for (const std::uint64_t end = first_ + kept_.size(); reader.next_ < end; ++reader.next_) {
    const Entry& entry = kept_[reader.next_ - first_];
    if (entry.kind == Kind::kSign) {
      if (reader.next_ + 1 < end) continue;
      ++reader.next_;
      return entry;
    }
    if (entry.place <= reader.after_) continue;
    if (entry.kind == Kind::kStep && now < reader.due_at_) {
      reader.held_ = entry;
      continue;
    }
    if (entry.kind == Kind::kEntry && reader.held_) return std::exchange(reader.held_, std::nullopt);
    reader.held_.reset();  // a newer step takes its place
    ++reader.next_;
    return entry;
  }
  // Behind the last there is nothing to wait for.
  if (reader.held_ && (now >= reader.due_at_ || ending_)) return std::exchange(reader.held_, std::nullopt);
  return std::nullopt;
}

void Relay::write(Reader& reader, const Entry& entry) {
  if (entry.kind != Kind::kSign) reader.after_ = entry.place;
  if (entry.kind == Kind::kStep && reader.period_.count() > 0) reader.due_at_ = Clock::now() + reader.period_;
  reader.is_writing_ = true;
  reader.write(entry.message);
}

void Relay::give_seat_up(Reader& reader) {
  Reader* const last = readers_.back();
  readers_[reader.seat_] = last;
  last->seat_ = reader.seat_;
  readers_.pop_back();
  reader.held_.reset();
  if (num_to_get_on_ > 0) num_to_get_on_ = readers_.size();  // who has changed seats might be left out
  if (!readers_.empty()) return;
  held_until_ = Clock::time_point::max();
  if (asleep_ != nullptr) alarm_.Cancel();  // it may be set for hours, and the queue ends after it
  if (ending_) return;
  is_given_up_ = true;
  context_.TryCancel();
}

// Waking itself.

void Relay::wake_at(Clock::time_point when) {
  if (asleep_ != nullptr) {
    if (when < alarm_at_) alarm_.Cancel();  // it looks then what it is to be woken for
    return;
  }
  asleep_ = shared_from_this();
  alarm_at_ = when;
  queue_.add();
  const auto left = std::chrono::duration_cast<std::chrono::microseconds>(when - Clock::now());
  const gpr_timespec span = gpr_time_from_micros(std::max<std::int64_t>(left.count(), 0), GPR_TIMESPAN);
  alarm_.Set(&queue_.inner(), gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), span), static_cast<Event*>(&woken_));
}

void Relay::has_woken(bool /*ok*/) {
  Queue& queue = queue_;
  std::shared_ptr<Relay> itself = std::move(asleep_);
  if (Clock::now() >= held_until_) {
    held_until_ = Clock::time_point::max();
    num_to_get_on_ = readers_.size();
  }
  get_some_on();
  if (held_until_ != Clock::time_point::max()) wake_at(held_until_);
  itself.reset();
  queue.remove();
}

std::shared_ptr<Relay> Relays::join(const Share& share, const std::string& method, const grpc::ByteBuffer& request,
                                    Reader& reader) {
  const std::string key = method + ' ' + share.key;
  std::shared_ptr<Relay> relay = relays_[key].lock();
  if (relay == nullptr || relay->has_ended()) {
    for (auto each = relays_.begin(); each != relays_.end();) each = each->second.expired() ? relays_.erase(each) : ++each;
    relay = std::make_shared<Relay>(onward_, queue_);
    relays_[key] = relay;
    relay->begin(method, request, share.after);
  }
  return relay->join(reader, share) ? relay : nullptr;
}

}  // namespace headrace::door
