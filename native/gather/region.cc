#include "gather/region.h"

#include <algorithm>
#include <array>

#include "gather/refusal.h"

namespace headrace {
namespace {

[[noreturn]] void refuse_size(const Label& label) {
  throw Refusal(label.text() + " is larger than what can be addressed.");
}

// How far one axis reaches below and above its first element.
void reach(std::ptrdiff_t length, std::ptrdiff_t stride, const Label& label, std::uintptr_t& below,
           std::uintptr_t& above) {
  const std::uintptr_t steps = static_cast<std::uintptr_t>(length) - 1;
  const std::uintptr_t step =
      stride < 0 ? std::uintptr_t{0} - static_cast<std::uintptr_t>(stride) : static_cast<std::uintptr_t>(stride);
  std::uintptr_t distance = 0;
  std::uintptr_t& side = stride < 0 ? below : above;
  if (__builtin_mul_overflow(steps, step, &distance) || __builtin_add_overflow(side, distance, &side)) {
    refuse_size(label);
  }
}

template <class Byte>
Region compute_region(const Rows<Byte>& rows, const Label& label) {
  if (rows.num_axes > kMaxAxes) throw Refusal(label.text() + " has more than 64 axes.");
  bool has_elements = rows.num_rows > 0;
  bool is_negative = rows.num_rows < 0;
  for (std::size_t axis = 0; axis < rows.num_axes; ++axis) {
    has_elements = has_elements && rows.shape[axis] > 0;
    is_negative = is_negative || rows.shape[axis] < 0;
  }
  if (is_negative) throw Refusal(label.text() + " has an axis of negative length.");
  if (!has_elements) return {};
  if (rows.first == nullptr) throw Refusal(label.text() + " has rows but no address.");

  std::uintptr_t below = 0;
  std::uintptr_t above = size_of(rows.element);
  reach(rows.num_rows, rows.row_stride, label, below, above);
  for (std::size_t axis = 0; axis < rows.num_axes; ++axis) {
    reach(rows.shape[axis], rows.strides[axis], label, below, above);
  }
  const auto first = reinterpret_cast<std::uintptr_t>(rows.first);
  Region region;
  // Half of the address space, so that nothing computed from one block can overflow.
  constexpr std::uintptr_t kLargest = PTRDIFF_MAX / 2;
  if (below > kLargest || above > kLargest || __builtin_sub_overflow(first, below, &region.begin) ||
      __builtin_add_overflow(first, above, &region.end)) {
    refuse_size(label);
  }
  return region;
}

}  // namespace

std::string Label::text() const {
  return index == static_cast<std::size_t>(-1) ? kind : std::string(kind) + " " + std::to_string(index);
}

Region region_of(const Source& rows, const Label& label) { return compute_region(rows, label); }
Region region_of(const Target& rows, const Label& label) { return compute_region(rows, label); }

void check_no_shared_bytes(const Target& rows, const Label& label) {
  if (rows.num_rows == 0) return;
  struct Axis {
    std::uintptr_t step, length;
  };
  std::array<Axis, kMaxAxes + 1> axes;
  std::size_t num_axes = 0;
  const auto add = [&](std::ptrdiff_t length, std::ptrdiff_t stride) {
    const auto magnitude = static_cast<std::uintptr_t>(stride);
    if (length > 1) axes[num_axes++] = {stride < 0 ? 0 - magnitude : magnitude, static_cast<std::uintptr_t>(length)};
  };
  add(rows.num_rows, rows.row_stride);
  for (std::size_t axis = 0; axis < rows.num_axes; ++axis) {
    if (rows.shape[axis] == 0) return;
    add(rows.shape[axis], rows.strides[axis]);
  }
  // Each axis must step over all that the axes with smaller steps cover.  This holds for every array that was allocated
  // and sliced, and refuses some odd ones that share nothing after all.
  std::sort(axes.begin(), axes.begin() + num_axes, [](const Axis& a, const Axis& b) { return a.step < b.step; });
  std::uintptr_t covered = size_of(rows.element);
  for (std::size_t axis = 0; axis < num_axes; ++axis) {
    if (axes[axis].step < covered) {
      throw BadLayout(label.text() + " cannot be written: some of its elements share memory.");
    }
    covered += (axes[axis].length - 1) * axes[axis].step;
  }
}

void check_disjoint(const std::vector<Region>& regions, const char* kind) {
  const auto comes_before = [&](std::size_t a, std::size_t b) { return regions[a].begin < regions[b].begin; };
  std::vector<std::size_t> order;
  order.reserve(regions.size());
  for (std::size_t i = 0; i < regions.size(); ++i) {
    if (!regions[i].is_empty()) order.push_back(i);
  }
  if (!std::is_sorted(order.begin(), order.end(), comes_before)) std::sort(order.begin(), order.end(), comes_before);
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (regions[order[i - 1]].overlaps(regions[order[i]])) {
      throw BadLayout(Label{kind, order[i - 1]}.text() + " and " + Label{kind, order[i]}.text() +
                      " overlap in memory.");
    }
  }
}

}  // namespace headrace
