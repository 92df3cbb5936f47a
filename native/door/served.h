// A caller's call on a queue, in the shape of gRPC's callback reactors.
//
// What is told, is told on the queue's thread, one thing after the other.  Begin things on any thread.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>

#include "door/inflation.h"
#include "door/queue.h"
#include "door/unpacker.h"

namespace headrace::door {

// What a caller has said of a call, and what he is told of it.
using Caller = grpc::GenericServerContext;

class Reactor;

// A call before, while and after somebody reacts to it; deletes itself when it is over.
class Served {
 public:
  // Who reacts to a call that has come; he is deleted by his own `OnDone`.
  using Receive = std::function<void(Served& call)>;

  // What all calls of a door share; outlives them.
  struct Shared {
    grpc::AsyncGenericService& service;
    const Inflation& inflation;
    Unpacker& unpacker;
    Receive receive;
  };

  // Waits for the next call; when it has come, waits for another, and lets somebody receive it.
  static void await(const Shared& shared, Queue& queue);

  Caller& caller() { return caller_; }
  Queue& queue() { return queue_; }

 private:
  friend class Reactor;

  Served(const Shared& shared, Queue& queue) : shared_(shared), queue_(queue) {}
  ~Served() = default;

  void has_come(bool ok);
  void has_read(bool ok);
  // The message that has been read is readable, or cannot be made so.
  void is_unpacked(bool ok);
  void has_written(bool ok);
  void has_begun(bool ok);
  void has_finished(bool ok);
  void is_over(bool ok);
  // One thing less is to happen.
  void release();

  const Shared& shared_;
  Queue& queue_;
  Caller caller_;
  grpc::GenericServerAsyncReaderWriter stream_{&caller_};
  Reactor* reactor_ = nullptr;
  std::atomic<int> num_pending_{2};  // its finish and its end; and what was begun
  bool is_sent_ = false;
  bool is_ended_ = false;  // by the caller, or by us
  grpc::ByteBuffer* message_ = nullptr;  // that is being read
  Inflated outcome_ = Inflated::kReadable;
  std::optional<grpc::Alarm> alarm_;  // brings the unpacker's word to the queue

  Told<Served> came_{*this, &Served::has_come};
  Told<Served> read_{*this, &Served::has_read};
  Told<Served> unpacked_{*this, &Served::is_unpacked};
  Told<Served> written_{*this, &Served::has_written};
  Told<Served> begun_{*this, &Served::has_begun};
  Told<Served> finished_{*this, &Served::has_finished};
  Told<Served> over_{*this, &Served::is_over};
};

// One message is read at a time, and one written.  After `Finish` the call, and who reacts to it, may be gone at any moment.
class Reactor {
 public:
  explicit Reactor(Served& call) : call_(call) { call.reactor_ = this; }
  virtual ~Reactor() = default;
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  void StartSendInitialMetadata();
  void StartRead(grpc::ByteBuffer* message);
  void StartWrite(const grpc::ByteBuffer* message);
  void StartWriteAndFinish(const grpc::ByteBuffer* message, const grpc::Status& status);
  // Once, unless the other one is called.
  void Finish(const grpc::Status& status);

  virtual void OnReadDone(bool /*ok*/) {}
  virtual void OnWriteDone(bool /*ok*/) {}
  // The caller has gone, or his deadline is over.
  virtual void OnCancel() {}
  // Nothing more happens.
  virtual void OnDone() = 0;

 protected:
  Queue& queue() { return call_.queue(); }
  // For `OnReadDone`: how the message was made readable that its sender may have compressed.
  Inflated outcome() const { return call_.outcome_; }
  // For `OnDone`: whether the network has what was written, and the end.
  bool is_sent() const { return call_.is_sent_; }

 private:
  Served& call_;
};

// Ends a call that nobody reacts to.
void turn_away(Served& call, const grpc::Status& status);

}  // namespace headrace::door
