#include "door/served.h"

#include <grpc/support/time.h>

namespace headrace::door {

void Served::await(const Shared& shared, Queue& queue) {
  auto* call = new Served(shared, queue);
  queue.add();
  call->caller_.AsyncNotifyWhenDone(static_cast<Event*>(&call->over_));
  shared.service.RequestCall(&call->caller_, &call->stream_, &queue.inner(), &queue.inner(),
                             static_cast<Event*>(&call->came_));
}

void Served::has_come(bool ok) {
  if (!ok) {  // the server takes no calls any more; of this one nothing more is told
    Queue& queue = queue_;
    delete this;
    queue.remove();
    return;
  }
  await(shared_, queue_);
  shared_.receive(*this);
}

void Served::has_read(bool ok) {
  if (ok && Inflation::is_compressed(*message_)) {
    shared_.unpacker.start(*message_, [this](Inflated outcome) {
      outcome_ = outcome;
      alarm_.emplace();
      alarm_->Set(&queue_.inner(), gpr_now(GPR_CLOCK_MONOTONIC), static_cast<Event*>(&unpacked_));
    });
    return;
  }
  if (ok) outcome_ = shared_.inflation.open(*message_);
  reactor_->OnReadDone(ok);
  release();
}

void Served::is_unpacked(bool /*ok*/) {
  reactor_->OnReadDone(!is_ended_);  // who has gone meanwhile has sent nothing
  release();
}

void Served::has_written(bool ok) {
  reactor_->OnWriteDone(ok);
  release();
}

void Served::has_begun(bool /*ok*/) { release(); }

void Served::has_finished(bool ok) {
  is_sent_ = ok;
  release();
}

void Served::is_over(bool /*ok*/) {
  is_ended_ = true;
  if (caller_.IsCancelled()) reactor_->OnCancel();
  release();
}

void Served::release() {
  if (num_pending_.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  Queue& queue = queue_;
  reactor_->OnDone();
  delete this;
  queue.remove();
}

void Reactor::StartSendInitialMetadata() {
  call_.num_pending_.fetch_add(1, std::memory_order_relaxed);
  call_.stream_.SendInitialMetadata(static_cast<Event*>(&call_.begun_));
}

void Reactor::StartRead(grpc::ByteBuffer* message) {
  call_.message_ = message;
  call_.num_pending_.fetch_add(1, std::memory_order_relaxed);
  call_.stream_.Read(message, static_cast<Event*>(&call_.read_));
}

void Reactor::StartWrite(const grpc::ByteBuffer* message) {
  call_.num_pending_.fetch_add(1, std::memory_order_relaxed);
  call_.stream_.Write(*message, static_cast<Event*>(&call_.written_));
}

void Reactor::StartWriteAndFinish(const grpc::ByteBuffer* message, const grpc::Status& status) {
  call_.stream_.WriteAndFinish(*message, {}, status, static_cast<Event*>(&call_.finished_));
}

void Reactor::Finish(const grpc::Status& status) {
  call_.stream_.Finish(status, static_cast<Event*>(&call_.finished_));
}

void turn_away(Served& call, const grpc::Status& status) {
  class Refusal final : public Reactor {
   public:
    using Reactor::Reactor;
    void OnDone() override { delete this; }
  };
  (new Refusal(call))->Finish(status);
}

}  // namespace headrace::door
