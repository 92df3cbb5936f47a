#include "door/passage.h"

#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "door/asked.h"
#include "door/metadata.h"

namespace headrace::door {
namespace {

using grpc::ByteBuffer;

// One call: the caller's side of it.  The side of the complete server is `ahead_`, until it may be that of all who follow
// the same thing.
//
// All of it lives on one queue, so no two things happen here at a time.  Either side ends only when nothing more can
// happen there.  Ahead, two holds keep it open: one while messages of the caller may still be written, one while answers
// are read.
class Passing final : public Reactor, private Reader {
 public:
  Passing(Onward& onward, Admission& admission, Relays& relays, Served& call)
      : Reactor(call), onward_(onward), admission_(admission), relays_(relays), caller_(call.caller()) {
    ahead_ = std::make_unique<Ahead>(*this);
    ahead_->begin();
    StartRead(&from_caller_);
  }

  ~Passing() override { admission_.leave(); }

  // From the caller.

  void OnReadDone(bool ok) override {
    if (is_written_ || ahead_->is_again()) return;
    if (const plane::Status* refusal = ok ? admission_.refusal_of(outcome()) : nullptr) {
      refusal_ = refusal;
      ahead_->cancel();
      end_writing();
    } else if (ok) {
      if (!request_) request_ = from_caller_;
      ahead_->StartWrite(&from_caller_);
    } else {
      ahead_->StartWritesDone();
      end_writing();
    }
  }

  void OnWriteDone(bool ok) override {
    is_writing_ = false;
    if (is_gone_) {
      end_reading_along(left());
    } else if (relay_ != nullptr) {
      if (ok) {
        relay_->has_written(*this);
      } else {
        leave_relay();
      }
    } else if (ok) {
      ahead_->read();
    } else {
      ahead_->give_up();  // nobody reads any more
    }
  }

  void OnCancel() override {
    is_cancelled_ = true;
    if (relay_ != nullptr) {
      leave_relay();
    } else {
      ahead_->cancel();
    }
  }

  // Only after a `Finish`, so the other side is over as well.
  void OnDone() override { delete this; }

 private:
  // A call to the complete server: the first, or one of a reader who was too slow to read along with others.
  class Ahead final : public AskedOften {
   public:
    explicit Ahead(Passing& passing, std::optional<std::int64_t> after = std::nullopt)
        : passing_(passing), is_again_(after.has_value()) {
      passing_.onward_.prepare(passing_.caller_, context_);
      context_.AddMetadata(std::string(kMayShare), "1");
      if (after) context_.AddMetadata(std::string(kAfter), std::to_string(*after));
    }

    void begin() { start(passing_.onward_.stub(), passing_.queue(), context_, passing_.caller_.method(), 2); }
    void read() { StartRead(&message_); }
    void cancel() { context_.TryCancel(); }
    void give_up() {
      cancel();
      RemoveHold();
    }
    bool is_again() const { return is_again_; }
    const grpc::ClientContext& context() const { return context_; }

    // Only then the first message is read, so that it cannot overtake.
    void OnReadInitialMetadataDone(bool ok) override {
      if (ok && !is_again_) passing_.begin_answering(context_);
      read();
    }

    void OnReadDone(bool ok) override {
      if (ok) {
        passing_.write_answer(message_);
      } else {
        passing_.stop_writing();
        RemoveHold();
      }
    }

    void OnWriteDone(bool ok) override {
      if (!ok) {
        passing_.stop_writing();
      } else if (is_again_) {
        if (passing_.is_written_) return;
        StartWritesDone();
        passing_.end_writing();
      } else {
        passing_.StartRead(&passing_.from_caller_);
      }
    }

    void OnDone(const grpc::Status& status) override { passing_.end(status); }

   private:
    Passing& passing_;
    const bool is_again_;
    grpc::ClientContext context_;
    ByteBuffer message_;
  };

  // Not when the call ended at once: then the caller's ends as early, and a client that may try again knows that it can.
  void begin_answering(const grpc::ClientContext& context) {
    tell_initial(context, caller_);
    StartSendInitialMetadata();
  }

  void write_answer(const ByteBuffer& message) {
    is_writing_ = true;
    StartWrite(&message);
  }

  void stop_writing() {
    if (!is_written_) end_writing();
  }

  void end_writing() {
    is_written_ = true;
    ahead_->RemoveHold();
  }

  void end(const grpc::Status& status) {
    if (status.ok() && refusal_ == nullptr && request_) {
      if (const auto share = Share::parse(trailing_value_of(ahead_->context(), kShare))) return read_along(*share);
    }
    Finish(refusal_ != nullptr ? refuse(caller_, *refusal_) : onward_.pass_on(status, ahead_->context(), caller_));
  }

  // Reading along with others.

  void read_along(const Share& share) {
    if (is_cancelled_) return end_reading_along(left());
    relay_ = relays_.join(share, caller_.method(), *request_, *this);
    if (relay_ == nullptr) ask_again(share.after);
  }

  void write(const ByteBuffer& message) override { write_answer(message); }

  void end(const grpc::Status& status, const grpc::ClientContext& stream) override {
    relay_.reset();
    end_reading_along(onward_.pass_on_to_each(status, stream, caller_));
  }

  void ask_again(std::int64_t after) override {
    relay_.reset();
    is_written_ = false;
    ahead_ = std::make_unique<Ahead>(*this, after);
    ahead_->begin();
    ahead_->StartWrite(&*request_);
  }

  // The caller has gone.
  void leave_relay() {
    std::exchange(relay_, nullptr)->leave(*this);
    if (is_writing_) {
      is_gone_ = true;
    } else {
      end_reading_along(left());
    }
  }

  static grpc::Status left() { return {grpc::StatusCode::CANCELLED, "the caller left"}; }

  void end_reading_along(const grpc::Status& status) {
    is_gone_ = false;
    tell_trailing(ahead_->context(), caller_);  // what the complete server said when it let him read along
    Finish(status);
  }

  Onward& onward_;
  Admission& admission_;
  Relays& relays_;
  Caller& caller_;
  std::unique_ptr<Ahead> ahead_;  // null never; over while the caller reads along
  std::shared_ptr<Relay> relay_;  // while he does
  ByteBuffer from_caller_;
  std::optional<ByteBuffer> request_;  // his first message
  bool is_written_ = false;
  bool is_writing_ = false;
  bool is_cancelled_ = false;
  bool is_gone_ = false;                    // to be finished as soon as nothing is being written
  const plane::Status* refusal_ = nullptr;  // of what the caller has sent
};

}  // namespace

void pass(Onward& onward, Admission& admission, Relays& relays, Served& call) {
  if (const auto refusal = admission.enter(call.caller())) {
    turn_away(call, *refusal);
  } else {
    new Passing(onward, admission, relays, call);
  }
}

}  // namespace headrace::door
