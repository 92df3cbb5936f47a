// Answers every unary call of any method with its own request: the least that a gRPC server in C++ can do.
//
//     echo [callback|queue]
//
// Prints the port that it listens on.  `callback` is the interface that the native door is written against; `queue` polls
// one completion queue from one thread.
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <cstdio>
#include <cstring>
#include <memory>

namespace {

class EchoReactor final : public grpc::ServerGenericBidiReactor {
 public:
  EchoReactor() { StartRead(&message_); }

  void OnReadDone(bool ok) override {
    if (ok) {
      StartWriteAndFinish(&message_, {}, grpc::Status::OK);
    } else {
      Finish({grpc::StatusCode::INVALID_ARGUMENT, "a call without a request"});
    }
  }
  void OnDone() override { delete this; }

 private:
  grpc::ByteBuffer message_;
};

class CallbackEcho final : public grpc::CallbackGenericService {
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    return new EchoReactor;
  }
};

// One call: asked for, read, answered, gone.
class QueuedEcho {
 public:
  QueuedEcho(grpc::AsyncGenericService& service, grpc::ServerCompletionQueue& queue)
      : service_(service), queue_(queue), stream_(&context_) {
    service_.RequestCall(&context_, &stream_, &queue_, &queue_, this);
  }

  void proceed(bool ok) {
    if (!ok || step_ == 2) {
      delete this;
    } else if (step_++ == 0) {
      new QueuedEcho(service_, queue_);
      stream_.Read(&message_, this);
    } else {
      stream_.WriteAndFinish(message_, {}, grpc::Status::OK, this);
    }
  }

 private:
  grpc::AsyncGenericService& service_;
  grpc::ServerCompletionQueue& queue_;
  grpc::GenericServerContext context_;
  grpc::GenericServerAsyncReaderWriter stream_;
  grpc::ByteBuffer message_;
  int step_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const bool by_queue = argc > 1 && std::strcmp(argv[1], "queue") == 0;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(-1);
  CallbackEcho callback;
  grpc::AsyncGenericService async;
  std::unique_ptr<grpc::ServerCompletionQueue> queue;
  if (by_queue) {
    builder.RegisterAsyncGenericService(&async);
    queue = builder.AddCompletionQueue();
  } else {
    builder.RegisterCallbackGenericService(&callback);
  }
  const auto server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  std::printf("%d\n", port);
  std::fflush(stdout);
  if (!by_queue) {
    server->Wait();
    return 0;
  }
  for (int i = 0; i < 64; ++i) new QueuedEcho(async, *queue);
  void* tag = nullptr;
  bool ok = false;
  while (queue->Next(&tag, &ok)) static_cast<QueuedEcho*>(tag)->proceed(ok);
}
