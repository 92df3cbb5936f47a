#include "door/passage.h"

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/client_callback.h>

#include <atomic>
#include <mutex>

#include "door/metadata.h"

namespace headrace::door {
namespace {

using grpc::ByteBuffer;

class Refusal final : public grpc::ServerGenericBidiReactor {
 public:
  explicit Refusal(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

// One call: the caller's side of it.  The side of the complete server is `ahead_`.
//
// gRPC ends either side only when nothing more can happen there.  Ahead, two holds keep it open: one while messages of
// the caller may still be written, one while answers are read.
class Passing final : public grpc::ServerGenericBidiReactor {
 public:
  Passing(Onward& onward, Admission& admission, grpc::GenericCallbackServerContext& caller)
      : onward_(onward), admission_(admission), caller_(caller), ahead_(*this) {
    onward_.prepare(caller_, ahead_context_);
    onward_.stub().PrepareBidiStreamingCall(&ahead_context_, caller_.method(), {}, &ahead_);
    ahead_.AddMultipleHolds(2);
    ahead_.StartCall();
    StartRead(&from_caller_);
  }

  ~Passing() override { admission_.leave(); }

  // From the caller.

  void OnReadDone(bool ok) override {
    const std::lock_guard<std::mutex> lock(writing_);
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

  void OnDone() override { let_go(); }

 private:
  class Ahead final : public grpc::ClientBidiReactor<ByteBuffer, ByteBuffer> {
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
    const std::lock_guard<std::mutex> lock(writing_);
    if (!is_written_) end_writing();
  }

  void end_writing() {
    is_written_ = true;
    ahead_.RemoveHold();
  }

  void end(const grpc::Status& status) {
    Finish(was_too_large() ? refuse(caller_, admission_.too_large())
                           : onward_.pass_on(status, ahead_context_, caller_));
    let_go();
  }

  bool was_too_large() {
    const std::lock_guard<std::mutex> lock(writing_);
    return is_too_large_;
  }

  void let_go() {
    if (sides_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  Onward& onward_;
  Admission& admission_;
  grpc::GenericCallbackServerContext& caller_;
  grpc::ClientContext ahead_context_;
  Ahead ahead_;
  ByteBuffer from_caller_;
  ByteBuffer from_ahead_;
  std::mutex writing_;
  bool is_written_ = false;
  bool is_too_large_ = false;  // what the caller has sent
  std::atomic<int> sides_{2};
};

}  // namespace

grpc::ServerGenericBidiReactor* Passage::CreateReactor(grpc::GenericCallbackServerContext* context) {
  if (const auto refusal = admission_.enter(*context)) return new Refusal(*refusal);
  return new Passing(onward_, admission_, *context);
}

}  // namespace headrace::door
