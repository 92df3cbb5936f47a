#include "target.h"

#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <chrono>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace load {

Target::Target(const Options& options) {
  for (const auto& path : options.bodies) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    const std::string content{std::istreambuf_iterator<char>(file), {}};
    const grpc::Slice slice(content);
    bodies.emplace_back(&slice, 1);
  }
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // else channels with equal arguments share one connection
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  if (!options.service_config.empty()) arguments.SetServiceConfigJSON(options.service_config);
  const auto until = std::chrono::system_clock::now() + std::chrono::seconds(10);
  for (int i = 0; i < options.connections; ++i) {
    const auto channel = grpc::CreateCustomChannel(options.target, grpc::InsecureChannelCredentials(), arguments);
    if (!channel->WaitForConnected(until)) throw std::runtime_error("cannot connect to " + options.target);
    stubs.push_back(std::make_unique<grpc::GenericStub>(channel));
  }
}

}  // namespace load
