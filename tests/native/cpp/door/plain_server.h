// A gRPC server that stands for the complete one: raw bytes, answered by what a test hands in.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <functional>
#include <memory>
#include <string>

namespace headrace::door {

using MakeReactor = std::function<grpc::ServerGenericBidiReactor*(grpc::GenericCallbackServerContext&)>;

class PlainServer final : public grpc::CallbackGenericService {
 public:
  PlainServer(const std::string& address, MakeReactor make) : make_(std::move(make)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterCallbackGenericService(this);
    server_ = builder.BuildAndStart();
  }
  ~PlainServer() override { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override {
    return make_(*context);
  }

 private:
  MakeReactor make_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace headrace::door
