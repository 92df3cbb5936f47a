// Checks what the device twin is asked to copy.  Runs on the host and is built with and without CUDA.
#include <limits>

#include "gather/cuda_gather.h"
#include "gather/refusal.h"
#include "gather/region.h"

namespace headrace::cuda {
namespace {

constexpr Label kBatch{"batch"};

struct RowSizes {
  std::ptrdiff_t elements;
  std::size_t block_bytes;
  std::size_t batch_bytes;
};

std::size_t multiply(std::ptrdiff_t count, std::size_t size, const Label& label) {
  std::size_t product = 0;
  if (__builtin_mul_overflow(static_cast<std::size_t>(count), size, &product) ||
      product > static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max())) {
    throw Refusal(label.text() + " is larger than what can be addressed.");
  }
  return product;
}

Region check_block(const Block& block, std::size_t row_bytes, std::size_t element_bytes, const Label& label) {
  if (block.num_rows < 0) throw Refusal(label.text() + " has a negative number of rows.");
  const std::size_t size = multiply(block.num_rows, row_bytes, label);
  if (size == 0) return {};
  if (block.address == 0) throw Refusal(label.text() + " has rows but no address.");
  if (block.address % element_bytes != 0) {
    throw Refusal(label.text() + " does not begin at a multiple of " + std::to_string(element_bytes) +
                  " bytes, the size of its elements.");
  }
  Region region;
  region.begin = block.address;
  if (__builtin_add_overflow(block.address, size, &region.end)) {
    throw Refusal(label.text() + " is larger than what can be addressed.");
  }
  return region;
}

RowSizes check_rows(Element block_element, Element batch_element, std::ptrdiff_t row_elements, bool to_batch) {
  const Element from = to_batch ? block_element : batch_element;
  const Element to = to_batch ? batch_element : block_element;
  if (!is_convertible(from, to)) {
    throw UnsupportedConversion("Elements are not converted from " + std::string(name_of(from)) + " to " +
                                std::string(name_of(to)) + ".");
  }
  if (row_elements < 0) throw Refusal("A row has a negative number of elements.");
  return {row_elements, multiply(row_elements, size_of(block_element), {"row"}),
          multiply(row_elements, size_of(batch_element), {"row"})};
}

Copy plan(const std::vector<Block>& blocks, Element block_element, const Block& batch, Element batch_element,
          std::ptrdiff_t row_elements, bool to_batch) {
  const char* const kind = to_batch ? "source" : "target";
  const RowSizes row = check_rows(block_element, batch_element, row_elements, to_batch);
  check_block(batch, row.batch_bytes, size_of(batch_element), kBatch);

  Copy copy{{}, to_batch ? block_element : batch_element, to_batch ? batch_element : block_element, 0};
  std::vector<Region> regions;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const Label label{kind, i};
    regions.push_back(check_block(blocks[i], row.block_bytes, size_of(block_element), label));
    if (blocks[i].num_rows > batch.num_rows - copy.num_rows) {
      throw Refusal(label.text() + " has " + std::to_string(blocks[i].num_rows) + " rows, but only " +
                    std::to_string(batch.num_rows - copy.num_rows) + " of the batch's " +
                    std::to_string(batch.num_rows) + " are left for it.");
    }
    const std::uintptr_t in_batch = batch.address + static_cast<std::size_t>(copy.num_rows) * row.batch_bytes;
    const auto num_elements = static_cast<std::size_t>(blocks[i].num_rows) * static_cast<std::size_t>(row.elements);
    copy.num_rows += blocks[i].num_rows;
    if (num_elements == 0) continue;
    copy.segments.push_back(to_batch ? Segment{blocks[i].address, in_batch, num_elements}
                                     : Segment{in_batch, blocks[i].address, num_elements});
  }

  const Region used = check_block({batch.address, copy.num_rows}, row.batch_bytes, size_of(batch_element), kBatch);
  for (std::size_t i = 0; i < regions.size(); ++i) {
    if (regions[i].overlaps(used)) throw BadLayout(Label{kind, i}.text() + " overlaps the batch in memory.");
  }
  if (!to_batch) check_disjoint(regions, kind);
  return copy;
}

}  // namespace

Copy plan_gather(const std::vector<Block>& sources, Element source_element, const Block& batch, Element batch_element,
                 std::ptrdiff_t row_elements) {
  return plan(sources, source_element, batch, batch_element, row_elements, true);
}

Copy plan_scatter(const Block& batch, Element batch_element, const std::vector<Block>& targets, Element target_element,
                  std::ptrdiff_t row_elements) {
  return plan(targets, target_element, batch, batch_element, row_elements, false);
}

}  // namespace headrace::cuda
