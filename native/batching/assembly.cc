#include "batching/assembly.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <new>
#include <utility>

#include "gather/convert.h"
#include "gather/gather.h"

namespace headrace::batching {
namespace {

constexpr std::align_val_t kAlignment{64};

InstructionSet best_instruction_set() {
  static const InstructionSet best = instruction_sets().front();
  return best;
}

std::size_t elements_of_row(const Input& input) {
  std::size_t count = 1;
  for (std::size_t axis = 1; axis < input.shape.size(); ++axis) count *= static_cast<std::size_t>(input.shape[axis]);
  return count;
}

// Elements [first, first + count) of bytes that are cut into pieces; returns where the next one goes.
std::byte* copy_pieces(const std::vector<Piece>& pieces, std::size_t first, std::size_t count, Element from, Element to,
                       std::byte* target) {
  const Convert convert = find_convert(from, to, best_instruction_set());
  const std::size_t from_size = size_of(from), to_size = size_of(to);
  std::size_t skip = first * from_size;
  std::array<std::byte, 8> torn;  // an element that lies in several pieces
  std::size_t torn_size = 0;
  for (const Piece& piece : pieces) {
    if (count == 0) break;
    if (skip >= piece.size) {
      skip -= piece.size;
      continue;
    }
    const std::byte* data = piece.data + skip;
    std::size_t size = piece.size - skip;
    skip = 0;
    if (torn_size > 0) {
      const std::size_t missing = std::min(from_size - torn_size, size);
      std::memcpy(torn.data() + torn_size, data, missing);
      torn_size += missing;
      data += missing;
      size -= missing;
      if (torn_size < from_size) continue;
      convert(torn.data(), target, 1);
      target += to_size;
      torn_size = 0;
      --count;
    }
    const std::size_t whole = std::min(size / from_size, count);
    convert(data, target, whole);
    target += whole * to_size;
    count -= whole;
    if (count > 0) {
      torn_size = size - whole * from_size;
      std::memcpy(torn.data(), data + whole * from_size, torn_size);
    }
  }
  assert(count == 0);
  return target;
}

// Rows of an array whose elements do not lie together.
std::byte* copy_strided(const Input& input, std::int64_t first, std::int64_t rows, Element to, std::byte* target) {
  const std::size_t num_axes = input.shape.size() - 1;
  std::vector<std::ptrdiff_t> shape(input.shape.begin() + 1, input.shape.end());
  std::vector<std::ptrdiff_t> packed(num_axes);
  auto stride = static_cast<std::ptrdiff_t>(size_of(to));
  for (std::size_t axis = num_axes; axis-- > 0;) {
    packed[axis] = stride;
    stride *= shape[axis];
  }
  const Source source{input.first + first * input.strides[0], *input.element,         rows, input.strides[0], num_axes,
                      shape.data(),                           input.strides.data() + 1};
  const Target into{target, to, rows, stride, num_axes, shape.data(), packed.data()};
  Plan::gather({source}, into, best_instruction_set()).run();
  return target + rows * stride;
}

// The lone part's own bytes, when the program can read them as they are.
const std::byte* own_bytes(const Input& input, const Part& part, Element wanted, std::size_t row_bytes) {
  if (input.pieces.size() != 1 || *input.element != wanted) return nullptr;
  const std::byte* const data = input.pieces[0].data + static_cast<std::size_t>(part.first) * row_bytes;
  return reinterpret_cast<std::uintptr_t>(data) % size_of(wanted) == 0 ? data : nullptr;
}

}  // namespace

Buffer::Buffer(std::size_t size_bytes)
    : memory_(static_cast<std::byte*>(::operator new(std::max<std::size_t>(size_bytes, 1), kAlignment)),
              [](std::byte* memory) { ::operator delete(memory, kAlignment); }),
      size_bytes_(size_bytes) {}

bool Buffer::overlaps(const std::byte* other, std::size_t other_size) const {
  const auto begin = reinterpret_cast<std::uintptr_t>(data());
  const auto other_begin = reinterpret_cast<std::uintptr_t>(other);
  return begin < other_begin + other_size && other_begin < begin + size_bytes_;
}

void Assembly::set_elements(std::vector<std::optional<Element>> elements) {
  const std::lock_guard lock(mutex_);
  elements_ = std::move(elements);
}

std::optional<Element> Assembly::wanted(std::size_t input, Element given) const {
  if (input >= elements_.size() || !elements_[input] || !is_convertible(given, *elements_[input])) return given;
  return elements_[input];
}

std::shared_ptr<Buffer> Assembly::buffer(std::size_t input, std::size_t size_bytes, std::size_t best_size_bytes) {
  if (input >= buffers_.size()) buffers_.resize(input + 1);
  std::shared_ptr<Buffer> kept = std::exchange(buffers_[input], nullptr);
  if (kept != nullptr && kept->size_bytes() >= size_bytes) return kept;
  return std::make_shared<Buffer>(std::max(size_bytes, best_size_bytes));
}

void Assembly::assemble(Batch& batch, const Limits& limits) {
  const std::lock_guard lock(mutex_);
  const bool is_alone = batch.parts.size() == 1;
  const Part& first = *batch.parts[0];
  const std::vector<Input>& like = first.call->inputs;
  batch.feeds.resize(like.size());
  for (std::size_t i = 0; i < like.size(); ++i) {
    Feed& feed = batch.feeds[i];
    feed.shape = like[i].shape;
    // A call that runs whole may have inputs of any shape; one with rows is cut, or joined with others.
    const bool has_rows = !is_alone || !first.is_whole;
    if (has_rows) feed.shape[0] = batch.rows;
    if (!like[i].element) continue;
    feed.element = wanted(i, *like[i].element);
    const std::size_t row_elements = elements_of_row(like[i]);
    if (is_alone) {
      if (!like[i].strides.empty() && *feed.element == *like[i].element) continue;
      const std::byte* const own = own_bytes(like[i], first, *feed.element, row_elements * size_of(*feed.element));
      // Nobody writes to a feed that has no buffer.
      feed.data = const_cast<std::byte*>(own);
      if (own != nullptr) continue;
    }
    const std::size_t row_bytes = std::max<std::size_t>(row_elements * size_of(*feed.element), 1);
    const std::int64_t rows = feed.shape.empty() ? 1 : feed.shape[0];
    const std::size_t best_rows =
        std::min(static_cast<std::size_t>(limits.max_batch_rows), limits.max_batch_bytes / row_bytes);
    feed.buffer = buffer(i, static_cast<std::size_t>(rows) * row_bytes, best_rows * row_bytes);
    feed.data = feed.buffer->data();
    std::byte* target = feed.data;
    for (const Part* part : batch.parts) {
      const Input& input = part->call->inputs[i];
      const std::int64_t part_rows = has_rows ? part->rows : rows;
      if (!input.strides.empty()) {
        target = copy_strided(input, part->first, part_rows, *feed.element, target);
      } else {
        target = copy_pieces(input.pieces, static_cast<std::size_t>(part->first) * row_elements,
                             static_cast<std::size_t>(part_rows) * row_elements, *input.element, *feed.element, target);
      }
    }
  }
}

void Assembly::release(Batch& batch, const std::vector<Output>& outputs) {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < batch.feeds.size(); ++i) {
    std::shared_ptr<Buffer> buffer = std::move(batch.feeds[i].buffer);
    if (buffer == nullptr) continue;
    const bool is_looked_at = std::any_of(outputs.begin(), outputs.end(), [&](const Output& output) {
      return buffer->overlaps(output.data, output.size_bytes);
    });
    if (!is_looked_at && i < buffers_.size() && buffers_[i] == nullptr) buffers_[i] = std::move(buffer);
  }
}

}  // namespace headrace::batching
