#include "bindings/ticket.h"

#include <pybind11/numpy.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <iterator>
#include <system_error>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/objects.h"

namespace py = pybind11;

namespace headrace::bindings {
namespace {

thread_local Mailbox::Bundle* open_bundle = nullptr;

int open_descriptor() {
  const int descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (descriptor < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  return descriptor;
}

}  // namespace

Mailbox::Bundle::Bundle() : before_(std::exchange(open_bundle, this)) {}

Mailbox::Bundle::~Bundle() {
  open_bundle = before_;
  // Nearly always all of them go to one loop.
  while (!letters_.empty()) {
    const std::shared_ptr<Mailbox> mailbox = letters_.front().first;
    std::vector<std::shared_ptr<Ticket>> same;
    decltype(letters_) others;
    same.reserve(letters_.size());
    for (auto& [to, ticket] : letters_) {
      if (to == mailbox) {
        same.push_back(std::move(ticket));
      } else {
        others.emplace_back(std::move(to), std::move(ticket));
      }
    }
    letters_ = std::move(others);
    mailbox->deliver(std::move(same));
  }
}

Mailbox::Mailbox() : descriptor_(open_descriptor()) {}

Mailbox::~Mailbox() { ::close(descriptor_); }

void Mailbox::post(const std::shared_ptr<Mailbox>& mailbox, std::shared_ptr<Ticket> ticket) {
  if (open_bundle != nullptr) {
    open_bundle->letters_.emplace_back(mailbox, std::move(ticket));
  } else {
    mailbox->deliver({std::move(ticket)});
  }
}

void Mailbox::deliver(std::vector<std::shared_ptr<Ticket>> letters) {
  const std::lock_guard lock(mutex_);
  const bool was_empty = letters_.empty();
  letters_.insert(letters_.end(), std::make_move_iterator(letters.begin()), std::make_move_iterator(letters.end()));
  if (was_empty) eventfd_write(descriptor_, 1);
}

std::vector<std::shared_ptr<Ticket>> Mailbox::empty() {
  const std::lock_guard lock(mutex_);
  eventfd_t count = 0;
  eventfd_read(descriptor_, &count);
  return std::exchange(letters_, {});
}

Ticket::Ticket(py::object future, std::shared_ptr<Mailbox> mailbox, std::shared_ptr<batching::Meters> meters,
               Names output_names)
    : future_(std::move(future)),
      mailbox_(std::move(mailbox)),
      meters_(std::move(meters)),
      output_names_(std::move(output_names)) {}

Ticket::~Ticket() {
  let_go(future_);
  for (py::object& array : arrays_) let_go(array);
}

void Ticket::take(const batching::Share& share) noexcept {
  rows_.push_back({share.outputs, share.first, share.rows, share.row, share.is_whole});
}

void Ticket::answered(const batching::Timing& timing) noexcept {
  timing_ = timing;
  Mailbox::post(mailbox_, shared_from_this());
}

void Ticket::refused(const batching::Refusal& refusal) noexcept {
  refusal_ = refusal;
  // No other door will try again for a caller of this one.
  if (refusal.kind == batching::Refusal::Kind::kClosed) meters_->ended(refusal.outcome, refusal.queue_seconds);
  Mailbox::post(mailbox_, shared_from_this());
}

void Ticket::add_input(py::object object) {
  batching::Input input;
  const auto array = py::reinterpret_borrow<py::array>(object);
  input.element = find_element(array);
  input.shape.assign(array.shape(), array.shape() + array.ndim());
  const auto* const data = static_cast<const std::byte*>(array.data());
  if (!input.element) {
    // Its rows are put together by the binding.
  } else if ((array.flags() & py::array::c_style) != 0) {
    input.pieces.push_back({data, static_cast<std::size_t>(array.nbytes())});
  } else {
    input.first = data;
    input.strides.assign(array.strides(), array.strides() + array.ndim());
  }
  inputs.push_back(std::move(input));
  arrays_.push_back(std::move(object));
}

void Ticket::forget_inputs() {
  inputs.clear();
  arrays_.clear();
}

}  // namespace headrace::bindings
