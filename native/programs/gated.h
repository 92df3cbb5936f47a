// A program whose runs trainings wait for.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "batching/clock.h"
#include "batching/program.h"
#include "gate/gate.h"

namespace headrace::programs {

class Gated final : public batching::Program {
 public:
  Gated(std::shared_ptr<batching::Program> program, std::shared_ptr<gate::Gate> gate)
      : program_(std::move(program)), gate_(std::move(gate)) {}

  int run(const batching::Batch& batch, std::vector<batching::Output>& outputs) override {
    const Passing passing(*gate_);
    return program_->run(batch, outputs);
  }

 private:
  // Inside the gate, until it goes.
  class Passing {
   public:
    explicit Passing(gate::Gate& gate) : gate_(gate) { gate_.enter(); }
    Passing(const Passing&) = delete;
    Passing& operator=(const Passing&) = delete;
    ~Passing() { gate_.leave(batching::steady_seconds() - entered_at_); }

   private:
    gate::Gate& gate_;
    const double entered_at_ = batching::steady_seconds();
  };

  const std::shared_ptr<batching::Program> program_;
  const std::shared_ptr<gate::Gate> gate_;
};

}  // namespace headrace::programs
