// The parts that wait for one model: a queue for each shape, every queue in order.
//
// A queue is a treap (Seidel and Aragon 1996) whose links lie in the parts themselves: nothing is allocated when a call
// comes, and one that leaves is gone at once, wherever it stood.  Each node knows the rows and the earliest deadline
// below it.  Knows no threads and no clock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "batching/part.h"

namespace headrace::batching {

// What rows must have in common to be computed together: types and shapes after the first axis, put into numbers.
using Group = std::vector<std::int64_t>;

// The parts of one group.
struct Queue {
  Group group;
  Part* root = nullptr;
  std::int64_t rows = 0;
  std::size_t nbytes = 0;

  bool is_empty() const { return root == nullptr; }
  Part* first() const;
  double earliest_deadline() const;
  double earliest_admission() const;
};

class WaitingRoom {
 public:
  WaitingRoom() = default;
  WaitingRoom(const WaitingRoom&) = delete;
  WaitingRoom& operator=(const WaitingRoom&) = delete;

  // Lets a part wait.  Its call, rows, nbytes, order and admission are set.  May end queues that are empty.
  void add(Part& part, const Group& group);

  // Takes out a part that waits, wherever it stands.  Its queue stays, even when it is empty now.
  void remove(Part& part);

  bool is_empty() const { return rows_ == 0; }
  std::int64_t rows() const { return rows_; }
  std::size_t nbytes() const { return nbytes_; }

  // Rows that would be computed before a part of this order.
  std::int64_t rows_before(const Order& order) const;

  // kNever when nobody has one.
  double earliest_deadline() const;

  // A part whose deadline is not later than `now`; null when there is none.
  Part* find_due(double now) const;

  // Any part that waits; null when there is none.
  Part* any() const;

  void for_each_queue(const std::function<void(Queue&)>& act);

  // Queues in memory: those with parts, and about as many that are empty.
  std::size_t num_queues() const { return queues_.size(); }

 private:
  struct Hash {
    std::size_t operator()(const Group& group) const;
  };

  static constexpr std::size_t kSpareQueues = 16;

  Queue& queue_of(const Group& group);
  void forget_empty_queues();

  std::unordered_map<Group, Queue, Hash> queues_;
  std::size_t num_filled_ = 0;  // queues that are not empty
  Queue* last_used_ = nullptr;  // most models have one shape only
  std::int64_t rows_ = 0;
  std::size_t nbytes_ = 0;
  std::uint32_t random_ = 0x9e3779b9u;
};

}  // namespace headrace::batching
