#include "batching/waiting_room.h"

#include <algorithm>
#include <cassert>
#include <iterator>
#include <string_view>

#include "batching/call.h"

namespace headrace::batching {
namespace {

void update(Part* node) {
  node->subtree_rows = node->rows;
  node->earliest_deadline = node->call->deadline;
  node->earliest_admission = node->admitted_at;
  for (Part* child : {node->left, node->right}) {
    if (child == nullptr) continue;
    child->parent = node;
    node->subtree_rows += child->subtree_rows;
    node->earliest_deadline = std::min(node->earliest_deadline, child->earliest_deadline);
    node->earliest_admission = std::min(node->earliest_admission, child->earliest_admission);
  }
}

// Everything in `left` goes before everything in `right`.
Part* merge(Part* left, Part* right) {
  if (left == nullptr) return right;
  if (right == nullptr) return left;
  if (left->weight > right->weight) {
    left->right = merge(left->right, right);
    update(left);
    return left;
  }
  right->left = merge(left, right->left);
  update(right);
  return right;
}

// Cuts a tree into what goes before `order` and the rest.
void split(Part* node, const Order& order, Part*& before, Part*& after) {
  if (node == nullptr) {
    before = after = nullptr;
  } else if (node->order < order) {
    split(node->right, order, node->right, after);
    update(node);
    before = node;
  } else {
    split(node->left, order, before, node->left);
    update(node);
    after = node;
  }
}

Part* insert(Part* root, Part* node) {
  if (root == nullptr || node->weight > root->weight) {
    split(root, node->order, node->left, node->right);
    update(node);
    return node;
  }
  Part*& side = node->order < root->order ? root->left : root->right;
  side = insert(side, node);
  update(root);
  return root;
}

}  // namespace

Part* Queue::first() const {
  Part* node = root;
  while (node != nullptr && node->left != nullptr) node = node->left;
  return node;
}

double Queue::earliest_deadline() const { return root == nullptr ? kNever : root->earliest_deadline; }

double Queue::earliest_admission() const { return root == nullptr ? kNever : root->earliest_admission; }

std::size_t WaitingRoom::Hash::operator()(const Group& group) const {
  return std::hash<std::string_view>()(
      {reinterpret_cast<const char*>(group.data()), group.size() * sizeof(Group::value_type)});
}

void WaitingRoom::add(Part& part, const Group& group) {
  Queue& queue = queue_of(group);
  random_ ^= random_ << 13;  // xorshift (Marsaglia 2003): the shape of the tree needs no better
  random_ ^= random_ >> 17;
  random_ ^= random_ << 5;
  part.weight = random_;
  part.left = part.right = part.parent = nullptr;
  part.queue = &queue;
  part.stage = Stage::kWaiting;
  if (queue.is_empty()) ++num_filled_;
  queue.root = insert(queue.root, &part);
  queue.root->parent = nullptr;
  queue.rows += part.rows;
  queue.nbytes += part.nbytes;
  rows_ += part.rows;
  nbytes_ += part.nbytes;
}

void WaitingRoom::remove(Part& part) {
  assert(part.stage == Stage::kWaiting);
  Queue& queue = *part.queue;
  Part* const parent = part.parent;
  Part* const rest = merge(part.left, part.right);
  if (rest != nullptr) rest->parent = parent;
  if (parent == nullptr) {
    queue.root = rest;
  } else {
    (parent->left == &part ? parent->left : parent->right) = rest;
    for (Part* node = parent; node != nullptr; node = node->parent) update(node);
  }
  part.left = part.right = part.parent = nullptr;
  part.queue = nullptr;
  queue.rows -= part.rows;
  queue.nbytes -= part.nbytes;
  rows_ -= part.rows;
  nbytes_ -= part.nbytes;
  if (queue.is_empty()) --num_filled_;
}

std::int64_t WaitingRoom::rows_before(const Order& order) const {
  std::int64_t rows = 0;
  for (const auto& [_, queue] : queues_) {
    const Part* node = queue.root;
    while (node != nullptr) {
      if (node->order < order) {
        rows += node->rows + (node->left != nullptr ? node->left->subtree_rows : 0);
        node = node->right;
      } else {
        node = node->left;
      }
    }
  }
  return rows;
}

double WaitingRoom::earliest_deadline() const {
  double earliest = kNever;
  for (const auto& [_, queue] : queues_) earliest = std::min(earliest, queue.earliest_deadline());
  return earliest;
}

Part* WaitingRoom::find_due(double now) const {
  for (const auto& [_, queue] : queues_) {
    if (queue.earliest_deadline() > now) continue;
    Part* node = queue.root;
    while (node->call->deadline > now) {
      node = node->left != nullptr && node->left->earliest_deadline <= now ? node->left : node->right;
    }
    return node;
  }
  return nullptr;
}

Part* WaitingRoom::any() const {
  for (const auto& [_, queue] : queues_) {
    if (!queue.is_empty()) return queue.root;
  }
  return nullptr;
}

void WaitingRoom::for_each_queue(const std::function<void(Queue&)>& act) {
  for (auto& [_, queue] : queues_) {
    if (!queue.is_empty()) act(queue);
  }
}

Queue& WaitingRoom::queue_of(const Group& group) {
  if (last_used_ != nullptr && last_used_->group == group) return *last_used_;
  if (queues_.size() > 2 * num_filled_ + kSpareQueues) forget_empty_queues();
  const auto [found, is_new] = queues_.try_emplace(group);
  if (is_new) found->second.group = group;
  last_used_ = &found->second;
  return *last_used_;
}

void WaitingRoom::forget_empty_queues() {
  last_used_ = nullptr;
  for (auto i = queues_.begin(); i != queues_.end();) i = i->second.is_empty() ? queues_.erase(i) : std::next(i);
}

}  // namespace headrace::batching
