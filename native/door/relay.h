// Streams of the complete server that many callers read along.
//
// The complete server decides who may read what, and from where.  It answers a reader as ever, and when he is near the
// end of what there is by now it ends his call with a word, `kShare`.  From then on he reads along here: of what all those
// read who follow the same thing there is one stream to the complete server, which begins a while before the first of
// them, each of its messages lies in memory once, and who asked for fewer of them is not woken for the others.  A reader
// who is too slow for what is kept here is asked for anew, behind the last that he got; so he costs nobody anything.
//
// Each message of that stream begins with eight bytes of its own, which readers do not see: `place * 4 + kind`, the least
// significant byte first.  Places count what is told; 0 is for signs of life, which everybody gets who is there.
//
// All of it lives on one queue, and is called on its thread.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "door/asked.h"
#include "door/onward.h"
#include "door/queue.h"

namespace headrace::door {

// What the complete server says of a reader: "{after} {period} {wait} {key}", both times in microseconds.
struct Share {
  // Nothing when it is not that.
  static std::optional<Share> parse(std::string_view word);

  std::int64_t after;                 // the place of the last that he got
  std::chrono::microseconds period;   // he wants steps at most so often; 0: all
  std::chrono::microseconds wait;     // how long from now the next step is too early
  std::string key;                    // what he follows
};

enum class Kind : std::uint8_t {
  kSign = 0,   // of life: who is behind goes without
  kEntry = 1,  // nobody goes without
  kStep = 2,   // who wants fewer gets the newest, when its time has come or something else comes
};

struct Entry {
  std::int64_t place = 0;
  Kind kind = Kind::kSign;
  grpc::ByteBuffer message;
};

// Nothing when a message has no beginning of that form.
std::optional<Entry> read_entry(const grpc::ByteBuffer& message);

class Relay;

// Somebody who reads along; outlives that.
class Reader {
 public:
  Reader() = default;
  virtual ~Reader() = default;
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Send a message, and say `Relay::has_written` when the next may come.
  virtual void write(const grpc::ByteBuffer& message) = 0;
  // He has got everything, and does not read along any more.  `stream` has the trailers of `status`.
  virtual void end(const grpc::Status& status, const grpc::ClientContext& stream) = 0;
  // What comes after this place is not kept any more; he does not read along any more.
  virtual void ask_again(std::int64_t after) = 0;

 private:
  friend class Relay;
  using Clock = std::chrono::steady_clock;

  std::size_t seat_ = 0;      // among the readers
  std::uint64_t next_ = 0;    // the entry that he is at, counted from the first that there ever was
  std::int64_t after_ = 0;    // the place of the last that he got
  bool is_writing_ = false;
  bool is_late_ = false;      // what he needs next came before the stream began
  Clock::duration period_{};
  Clock::time_point due_at_;  // a step before that is held
  std::optional<Entry> held_;
};

// One stream.  Lives until it has ended and nobody reads along any more; ends when nobody does.
class Relay final : public AskedOften, public std::enable_shared_from_this<Relay> {
 public:
  Relay(Onward& onward, Queue& queue) : onward_(onward), queue_(queue) {}

  void begin(const std::string& method, const grpc::ByteBuffer& request, std::int64_t after);

  // False when what he needs next is not kept any more.  A message may be written at once.
  bool join(Reader& reader, const Share& share);
  void has_written(Reader& reader);
  void leave(Reader& reader);

  bool has_ended() const { return ending_.has_value() || is_given_up_; }

  void OnReadInitialMetadataDone(bool ok) override;
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  using Clock = Reader::Clock;

  void keep(Entry entry);
  // Let every reader get on, some of them at a time: predictions are read by the same thread.
  void get_all_on();
  void get_some_on();
  // Let a reader get on as far as he can; false when he has left.
  bool get_on(Reader& reader, Clock::time_point now);
  // The next message for a reader who is not writing; nothing when there is none yet.
  std::optional<Entry> take(Reader& reader, Clock::time_point now);
  void write(Reader& reader, const Entry& entry);
  void give_seat_up(Reader& reader);
  void wake_at(Clock::time_point when);
  void has_woken(bool ok);

  Onward& onward_;
  Queue& queue_;
  grpc::ClientContext context_;
  grpc::ByteBuffer request_;
  grpc::ByteBuffer received_;
  std::shared_ptr<Relay> itself_;  // while the call lives
  std::optional<grpc::Status> ending_;
  bool is_given_up_ = false;

  std::deque<Entry> kept_;
  std::uint64_t first_ = 0;     // how many came before those that are kept
  std::size_t kept_bytes_ = 0;
  bool has_begun_ = false;      // the first entry has come
  std::int64_t since_ = 0;      // the place of the last one before those that are kept
  std::vector<Reader*> readers_;
  std::size_t turn_ = 0;        // the reader who gets on next
  std::size_t num_to_get_on_ = 0;

  grpc::Alarm alarm_;
  std::shared_ptr<Relay> asleep_;  // itself, while the alarm is set
  Clock::time_point alarm_at_;
  Clock::time_point held_until_ = Clock::time_point::max();  // when the next step that is held is due
  Told<Relay> woken_{*this, &Relay::has_woken};
};

// All streams of one queue.
class Relays {
 public:
  Relays(Onward& onward, Queue& queue) : onward_(onward), queue_(queue) {}

  // Read along in the stream that `share` says, begun with `request` if it is not there.  Nothing when that is too late.
  std::shared_ptr<Relay> join(const Share& share, const std::string& method, const grpc::ByteBuffer& request,
                              Reader& reader);

 private:
  Onward& onward_;
  Queue& queue_;
  // By method and key.  Those that are gone leave when another one comes.
  std::unordered_map<std::string, std::weak_ptr<Relay>> relays_;
};

}  // namespace headrace::door
