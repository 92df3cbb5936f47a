// A call that came from Python, and the letterbox in which an event loop finds how its calls have ended.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "batching/call.h"
#include "batching/meters.h"

namespace headrace::bindings {

class Ticket;

// Filled by any thread without the GIL, emptied by the thread of one event loop, which watches the descriptor: it turns
// readable with the first letter, and is written to once however many follow.
class Mailbox {
 public:
  Mailbox();
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  int descriptor() const { return descriptor_; }
  static void post(const std::shared_ptr<Mailbox>& mailbox, std::shared_ptr<Ticket> ticket);
  std::vector<std::shared_ptr<Ticket>> empty();

  // While one of these lives, what its thread posts is kept back, so that a batch of answers wakes the loop once.
  class Bundle {
   public:
    Bundle();
    ~Bundle();
    Bundle(const Bundle&) = delete;
    Bundle& operator=(const Bundle&) = delete;

   private:
    friend class Mailbox;
    std::vector<std::pair<std::shared_ptr<Mailbox>, std::shared_ptr<Ticket>>> letters_;
    Bundle* before_;
  };

 private:
  void deliver(std::vector<std::shared_ptr<Ticket>> letters);

  const int descriptor_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Ticket>> letters_;
};

// Its memory may be let go of by a lane, which does not hold the GIL.
class Ticket final : public batching::Call, public std::enable_shared_from_this<Ticket> {
 public:
  // Rows of the outputs of one batch.
  struct Rows {
    std::vector<batching::Output> outputs;
    std::int64_t first, rows, row;
    bool is_whole;
  };

  // `output_names` in the order of what a program gives.
  using Names = std::shared_ptr<const std::vector<std::string>>;
  Ticket(pybind11::object future, std::shared_ptr<Mailbox> mailbox, std::shared_ptr<batching::Meters> meters,
         Names output_names = nullptr);
  ~Ticket() override;

  void take(const batching::Share& share) noexcept override;
  void answered(const batching::Timing& timing) noexcept override;
  void refused(const batching::Refusal& refusal) noexcept override;

  // With the GIL held, all of these.
  // Points the next input at an array, which is kept.
  void add_input(pybind11::object array);
  const pybind11::object& array(std::size_t input) const { return arrays_[input]; }
  const pybind11::object& future() const { return future_; }
  // Nobody reads the inputs any more.
  void forget_inputs();

  // When it has ended.
  const std::vector<Rows>& rows() const { return rows_; }
  const Names& output_names() const { return output_names_; }
  const batching::Timing& timing() const { return timing_; }
  const std::optional<batching::Refusal>& refusal() const { return refusal_; }

 private:
  pybind11::object future_;
  std::vector<pybind11::object> arrays_;
  const std::shared_ptr<Mailbox> mailbox_;
  const std::shared_ptr<batching::Meters> meters_;
  const Names output_names_;
  std::vector<Rows> rows_;
  batching::Timing timing_;
  std::optional<batching::Refusal> refusal_;
};

}  // namespace headrace::bindings
