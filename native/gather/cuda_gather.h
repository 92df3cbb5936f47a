// The twin of gather.h in device memory: contiguous blocks, addressed by device pointers, on the caller's stream.
//
// Built without CUDA, the same functions exist, check their arguments the same way and then throw CudaUnavailable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "gather/element.h"

namespace headrace::cuda {

// There is no CUDA device that this build can use; the message says why.
class CudaUnavailable : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A CUDA call failed.
class CudaFailure : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Rows that lie together in device memory.
struct Block {
  std::uintptr_t address;
  std::ptrdiff_t num_rows;
};

// One contiguous run of elements.
struct Segment {
  std::uintptr_t from;
  std::uintptr_t to;
  std::size_t num_elements;
};

// All elements of one copy.
struct Copy {
  std::vector<Segment> segments;
  Element from;
  Element to;
  std::ptrdiff_t num_rows;
};

// Check a gather or a scatter of rows of `row_elements` elements each.  Throw Refusal, UnsupportedConversion or
// BadLayout; look at no memory, so they need no device.
Copy plan_gather(const std::vector<Block>& sources, Element source_element, const Block& batch, Element batch_element,
                 std::ptrdiff_t row_elements);
Copy plan_scatter(const Block& batch, Element batch_element, const std::vector<Block>& targets, Element target_element,
                  std::ptrdiff_t row_elements);

// Enqueues the copy on a stream (a cudaStream_t; 0 is the default stream) and returns without waiting for it.
//
// Allocates nothing and does not synchronise, so it may be captured in a CUDA graph.  Throws Refusal when an address is
// not device memory or not all are on one device, CudaUnavailable, or CudaFailure.
void enqueue(const Copy& copy, std::uintptr_t stream);

// Whether this module was built with CUDA.
bool is_built();

struct Devices {
  int count;
  // Why there are none; empty when there are.
  std::string reason;
};

// Never throws: no driver means no devices.
Devices devices();

// What decides how fast programs are on a device, and which of them run there at all.
struct Device {
  std::string name;
  // Of its compute capability, 9.0 for instance.
  int major;
  int minor;
};

// Makes no context.  Throws CudaUnavailable, or CudaFailure.
Device device(int number);

struct Memory {
  std::size_t free_bytes;
  std::size_t total_bytes;
};

// What a device has, and has left for anybody, other processes included.  The first call of a process makes it a context
// there, which takes some hundred megabytes.  Throws CudaUnavailable, or CudaFailure.
Memory memory(int device);

}  // namespace headrace::cuda
