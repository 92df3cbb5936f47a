#include "door/passage.h"

#include <grpcpp/support/byte_buffer.h>

#include "door/asked.h"
#include "door/metadata.h"

namespace headrace::door {
namespace {

using grpc::ByteBuffer;

// One call: the caller's side of it.  The side of the complete server is `ahead_`.
//
// Both live on one queue, so no two things happen here at a time.  Either side ends only when nothing more can happen
// there.  Ahead, two holds keep it open: one while messages of the caller may still be written, one while answers are
// read.
class Passing final : public Reactor {
 public:
  Passing(Onward& onward, Admission& admission, Served& call)
      : Reactor(call), onward_(onward), admission_(admission), caller_(call.caller()), ahead_(*this) {
    onward_.prepare(caller_, ahead_context_);
    ahead_.start(onward_.stub(), queue(), ahead_context_, caller_.method(), 2);
    StartRead(&from_caller_);
  }

  ~Passing() override { admission_.leave(); }

  // From the caller.

  void OnReadDone(bool ok) override {
    if (is_written_) return;
    if (ok && admission_.is_too_large(from_caller_)) {
      is_too_large_ = true;
      ahead_context_.TryCancel();
      end_writing();
    } else if (ok) {
      ahead_.StartWrite(&from_caller_);
    } else {
      ahead_.StartWritesDone();
      end_writing();
    }
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      ahead_.StartRead(&from_ahead_);
    } else {
      ahead_context_.TryCancel();  // nobody reads any more
      ahead_.RemoveHold();
    }
  }

  void OnCancel() override { ahead_context_.TryCancel(); }

  // Only after `end`, so the other side is over as well.
  void OnDone() override { delete this; }

 private:
  class Ahead final : public AskedOften {
   public:
    explicit Ahead(Passing& passing) : passing_(passing) {}

    // Only then the first message is read, so that it cannot overtake.
    void OnReadInitialMetadataDone(bool ok) override {
      if (ok) passing_.begin_answering();
      StartRead(&passing_.from_ahead_);
    }

    void OnReadDone(bool ok) override {
      if (ok) {
        passing_.StartWrite(&passing_.from_ahead_);
      } else {
        passing_.stop_writing();
        RemoveHold();
      }
    }

    void OnWriteDone(bool ok) override {
      if (ok) {
        passing_.StartRead(&passing_.from_caller_);
      } else {
        passing_.stop_writing();
      }
    }

    void OnDone(const grpc::Status& status) override { passing_.end(status); }

   private:
    Passing& passing_;
  };

  // Not when the call ended at once: then the caller's ends as early, and a client that may try again knows that it can.
  void begin_answering() {
    tell_initial(ahead_context_, caller_);
    StartSendInitialMetadata();
  }

  void stop_writing() {
    if (!is_written_) end_writing();
  }

  void end_writing() {
    is_written_ = true;
    ahead_.RemoveHold();
  }

  void end(const grpc::Status& status) {
    Finish(is_too_large_ ? refuse(caller_, admission_.too_large())
                         : onward_.pass_on(status, ahead_context_, caller_));
  }

  Onward& onward_;
  Admission& admission_;
  Caller& caller_;
  grpc::ClientContext ahead_context_;
  Ahead ahead_;
  ByteBuffer from_caller_;
  ByteBuffer from_ahead_;
  bool is_written_ = false;
  bool is_too_large_ = false;  // what the caller has sent
};

}  // namespace

void pass(Onward& onward, Admission& admission, Served& call) {
  if (const auto refusal = admission.enter(call.caller())) {
    turn_away(call, *refusal);
  } else {
    new Passing(onward, admission, call);
  }
}

}  // namespace headrace::door
