#include "gather/gather.h"

#include <array>
#include <string>

#include "gather/refusal.h"
#include "gather/region.h"

namespace headrace {
namespace {

template <class Byte>
std::string shape_of(const Rows<Byte>& rows) {
  std::string text = "(";
  for (std::size_t axis = 0; axis < rows.num_axes; ++axis) {
    text += (axis > 0 ? ", " : "") + std::to_string(rows.shape[axis]);
  }
  return text + ")";
}

// What a block and the batch must have in common; returns the row of the batch after the block's last.
template <class BlockByte, class BatchByte>
std::ptrdiff_t check_fits(const Rows<BlockByte>& block, const Rows<BatchByte>& batch, std::ptrdiff_t first_row,
                          const Label& label) {
  bool has_same_shape = block.num_axes == batch.num_axes;
  for (std::size_t axis = 0; has_same_shape && axis < batch.num_axes; ++axis) {
    has_same_shape = block.shape[axis] == batch.shape[axis];
  }
  if (!has_same_shape) {
    throw Refusal(label.text() + " has rows of shape " + shape_of(block) + ", the batch has rows of shape " +
                  shape_of(batch) + ".");
  }
  if (block.num_rows > batch.num_rows - first_row) {
    throw Refusal(label.text() + " has " + std::to_string(block.num_rows) + " rows, but only " +
                  std::to_string(batch.num_rows - first_row) + " of the batch's " + std::to_string(batch.num_rows) +
                  " are left for it.");
  }
  return first_row + block.num_rows;
}

void check_convertible(Element from, Element to, const Label& label) {
  if (!is_convertible(from, to)) {
    throw UnsupportedConversion(label.text() + ": elements are not converted from " + std::string(name_of(from)) +
                                " to " + std::string(name_of(to)) + ".");
  }
}

// Rows of the batch; only called for rows that the batch has, so that the address is one inside it.
template <class Byte>
Rows<Byte> slice(const Rows<Byte>& batch, std::ptrdiff_t first_row, std::ptrdiff_t num_rows) {
  Rows<Byte> rows = batch;
  if (num_rows > 0) rows.first += first_row * batch.row_stride;
  rows.num_rows = num_rows;
  return rows;
}

constexpr Label kBatch{"batch"};

}  // namespace

Plan Plan::gather(const std::vector<Source>& sources, const Target& batch, InstructionSet instruction_set) {
  Plan plan;
  plan.steps_.reserve(sources.size());
  region_of(batch, kBatch);
  check_no_shared_bytes(batch, kBatch);
  std::vector<Region> regions;
  regions.reserve(sources.size());
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const Label label{"source", i};
    check_convertible(sources[i].element, batch.element, label);
    regions.push_back(region_of(sources[i], label));
    const std::ptrdiff_t first_row = plan.num_rows_;
    plan.num_rows_ = check_fits(sources[i], batch, first_row, label);
    plan.add(sources[i], slice(batch, first_row, sources[i].num_rows), instruction_set);
  }
  const Region region = region_of(slice(batch, 0, plan.num_rows_), kBatch);
  for (std::size_t i = 0; i < regions.size(); ++i) {
    if (regions[i].overlaps(region)) throw BadLayout(Label{"source", i}.text() + " overlaps the batch in memory.");
  }
  return plan;
}

Plan Plan::scatter(const Source& batch, const std::vector<Target>& targets, InstructionSet instruction_set) {
  Plan plan;
  plan.steps_.reserve(targets.size());
  region_of(batch, kBatch);
  std::vector<Region> regions;
  regions.reserve(targets.size());
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const Label label{"target", i};
    check_convertible(batch.element, targets[i].element, label);
    regions.push_back(region_of(targets[i], label));
    check_no_shared_bytes(targets[i], label);
    const std::ptrdiff_t first_row = plan.num_rows_;
    plan.num_rows_ = check_fits(targets[i], batch, first_row, label);
    plan.add(slice(batch, first_row, targets[i].num_rows), targets[i], instruction_set);
  }
  const Region region = region_of(slice(batch, 0, plan.num_rows_), kBatch);
  for (std::size_t i = 0; i < regions.size(); ++i) {
    if (regions[i].overlaps(region)) throw BadLayout(Label{"target", i}.text() + " overlaps the batch in memory.");
  }
  check_disjoint(regions, "target");
  return plan;
}

void Plan::add(const Source& from, const Target& to, InstructionSet instruction_set) {
  const auto from_size = static_cast<std::ptrdiff_t>(size_of(from.element));
  const auto to_size = static_cast<std::ptrdiff_t>(size_of(to.element));
  auto num_elements = static_cast<std::size_t>(from.num_rows);
  for (std::size_t axis = 0; axis < from.num_axes; ++axis) num_elements *= static_cast<std::size_t>(from.shape[axis]);
  if (num_elements == 0) return;

  std::array<Axis, kMaxAxes + 1> axes;
  std::size_t num_axes = 0;
  // Axes that follow each other without a gap on both sides become one.
  const auto push = [&](std::ptrdiff_t length, std::ptrdiff_t from_stride, std::ptrdiff_t to_stride) {
    if (length == 1) return;
    if (num_axes > 0) {
      Axis& outer = axes[num_axes - 1];
      if (outer.from_stride == length * from_stride && outer.to_stride == length * to_stride) {
        outer = {outer.length * length, from_stride, to_stride};
        return;
      }
    }
    axes[num_axes++] = {length, from_stride, to_stride};
  };
  push(from.num_rows, from.row_stride, to.row_stride);
  for (std::size_t axis = 0; axis < from.num_axes; ++axis) push(from.shape[axis], from.strides[axis], to.strides[axis]);

  std::size_t run_length = 1;
  if (num_axes > 0 && axes[num_axes - 1].from_stride == from_size && axes[num_axes - 1].to_stride == to_size) {
    run_length = static_cast<std::size_t>(axes[--num_axes].length);
  }
  const Convert convert = find_convert(from.element, to.element, instruction_set);
  steps_.push_back({from.first, to.first, convert, run_length, axes_.size(), num_axes});
  axes_.insert(axes_.end(), axes.begin(), axes.begin() + num_axes);
  size_bytes_ += num_elements * size_of(to.element);
}

void Plan::run() const noexcept {
  for (const Step& step : steps_) run(step);
}

void Plan::run(const Step& step) const noexcept {
  if (step.num_axes == 0) return step.convert(step.from, step.to, step.run_length);
  const Axis* const axes = axes_.data() + step.first_axis;
  const Axis& inner = axes[step.num_axes - 1];
  std::array<std::ptrdiff_t, kMaxAxes + 1> position{};
  const std::byte* from = step.from;
  std::byte* to = step.to;
  while (true) {
    for (std::ptrdiff_t i = 0; i < inner.length; ++i) {
      step.convert(from + i * inner.from_stride, to + i * inner.to_stride, step.run_length);
    }
    // Like an odometer: the last axis that is not at its end moves on, those after it start again.
    std::size_t axis = step.num_axes - 1;
    while (axis > 0) {
      --axis;
      from += axes[axis].from_stride;
      to += axes[axis].to_stride;
      if (++position[axis] < axes[axis].length) break;
      from -= axes[axis].length * axes[axis].from_stride;
      to -= axes[axis].length * axes[axis].to_stride;
      position[axis] = 0;
      if (axis == 0) return;
    }
    if (step.num_axes == 1) return;
  }
}

}  // namespace headrace
