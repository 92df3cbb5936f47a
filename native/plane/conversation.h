// One bidirectional stream of predictions.
//
// The door makes a conversation, keeps it, and starts it.  The conversation asks for messages and writes answers, one at
// a time each; the door tells it how that went.  All calls into the conversation may come from any thread, but
// `has_read` and `has_written` come one at a time each.  A message that the plane cannot answer goes to the complete
// server as a unary call of its own, and its answer becomes part of the stream.
#pragma once

#include <memory>
#include <optional>
#include <string_view>

#include "plane/bytes.h"
#include "plane/exchange.h"
#include "plane/status.h"

namespace headrace::plane {

// Told how a passed call ended.  Exactly one of them, once, on any thread.
class Passage {
 public:
  virtual ~Passage() = default;
  virtual void answered(Bytes response) noexcept = 0;
  virtual void failed(const Status& status) noexcept = 0;
};

// A unary call under way to the complete server.  Destroying it does not end it.
class PassedCall {
 public:
  virtual ~PassedCall() = default;
  virtual void cancel() noexcept = 0;
};

// The door's side of a stream.
class Stream {
 public:
  virtual ~Stream() = default;

  // Read one message: `has_read` follows.  At most one at a time.
  virtual void read() noexcept = 0;
  // Write one message: `has_written` follows.  At most one at a time.
  virtual void write(Block message) noexcept = 0;
  // End the stream.  Once, after the last write was told of, perhaps while a read is under way, of which nothing need be
  // told any more; the conversation does not touch the stream again.
  virtual void finish(const Status& status) noexcept = 0;
  // Send `request` to the complete server as a unary call of `method` (kPredict, kModelInfer) with the stream's metadata.
  // `deadline` is on std::chrono::steady_clock.  `passage` is kept until it has been told.
  virtual std::shared_ptr<PassedCall> pass(Method method, Bytes request, double deadline,
                                           std::shared_ptr<Passage> passage) noexcept = 0;
};

class Conversation {
 public:
  virtual ~Conversation() = default;

  virtual void start() noexcept = 0;
  // A message, or nothing when the caller has sent all that he had.
  virtual void has_read(std::optional<Bytes> message) noexcept = 0;
  // Instead of a message: there was one that may not be taken.  What is under way is answered, then the stream ends so.
  virtual void stop(const Status& status) noexcept = 0;
  // Whether the message is on its way; false when the caller has gone.
  virtual void has_written(bool is_ok) noexcept = 0;
  // The caller has gone, or the deadline is over: nothing is read or written any more, and `finish` follows.
  virtual void cancel() noexcept = 0;
  virtual std::string_view request_id() const noexcept = 0;
};

}  // namespace headrace::plane
