// A stream of predictions: how it is read, bounded, written and ended, whatever its messages are.
//
// At most `window` requests are under way; the stream is read no further until an answer has been taken.  So a caller who
// does not read is waited for, and costs a bounded amount of memory.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "batching/clock.h"
#include "batching/timer.h"
#include "plane/call_record.h"
#include "plane/context.h"
#include "plane/conversation.h"
#include "plane/prediction.h"

namespace headrace::plane {

class Talk : public Conversation, public batching::Due, public std::enable_shared_from_this<Talk> {
 public:
  // `part` is the unary method that a message becomes when it is passed on.
  Talk(const Context& context, Method method, Method part, const CallInfo& info, Stream& stream);

  ~Talk() override;

  void start() noexcept override { advance(); }
  void has_read(std::optional<Bytes> message) noexcept override;
  void stop(const Status& status) noexcept override;
  void has_written(bool is_ok) noexcept override;
  void cancel() noexcept override;
  std::string_view request_id() const noexcept override { return record_.request_id(); }

  // The server is closing: what is under way is answered, then the stream ends.
  void drain() noexcept;

 protected:
  using Number = std::uint64_t;

  // Does with a message what its kind of stream does, and ends with `answer` or `pass` for this number, or `refuse_all`.
  virtual void ask(Number number, Bytes message) = 0;
  // Whether answers come in the order of their requests.
  virtual bool is_in_order() const = 0;

  const Context& context() const { return context_; }
  double deadline() const { return record_.deadline(); }

  // Keeps what is under way for a request, to be ended with the stream.  False when the stream has ended.  When it has no
  // answer at `due_at`, `expire` follows.
  bool keep(Number number, std::shared_ptr<Prediction> prediction, double due_at = batching::kNever);
  // The time of a request is over; it may have been answered just now.
  virtual void expire(Prediction& prediction);
  void answer(Number number, Block message, std::string id = {});
  void pass(Number number, PassReason reason, Bytes request, double deadline, std::shared_ptr<Passage> passage);
  // The bytes are not a message of this stream: what is under way is answered, then the stream ends with this.
  void refuse_all(Number number, const Status& status);

  // Ids of requests that are under way.
  bool take_id(std::string_view id);

 private:
  struct Ready {
    Block message;
    std::string id;
  };
  struct Slot {
    std::shared_ptr<Prediction> prediction;
    std::shared_ptr<PassedCall> passed;
    std::optional<Ready> ready;
    double due_at = batching::kNever;
  };
  struct ToPass {
    Number number = 0;
    Bytes request;
    double deadline = 0;
    std::shared_ptr<Passage> passage;
  };
  enum class Act { kNone, kRead, kWrite, kPass, kFinish };

  // Does what there is to be done with the stream; whoever comes while somebody is at it leaves it to him.  So the
  // stream is never touched by two at once, nor after its end.
  void advance();
  Act next();
  void collect(Number number);
  void watch(double due_at);
  void expire_due() noexcept override;

  const Context& context_;
  Stream& stream_;
  const Method part_;
  CallRecord record_;

  std::mutex mutex_;
  bool is_at_it_ = false;
  bool is_reading_ = false;
  bool is_writing_ = false;
  bool is_read_ = false;  // nothing more is wanted of the caller
  bool is_cancelled_ = false;
  bool is_finished_ = false;
  Status ending_;
  std::size_t num_open_ = 0;
  Number next_number_ = 0;
  Number next_in_order_ = 0;
  std::unordered_map<Number, Slot> slots_;
  std::deque<Ready> ready_;
  std::deque<ToPass> to_pass_;
  std::unordered_set<std::string> ids_;
  double watched_until_ = batching::kNever;  // when the timer comes
  std::shared_ptr<batching::Timer> timer_;
};

}  // namespace headrace::plane
