// Copies and converts runs of elements in device memory, many runs in one launch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <limits>

#include "gather/cuda_gather.h"
#include "gather/refusal.h"

namespace headrace::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPacksPerThread = 4;  // independent loads in flight before the first store
constexpr int kPackBytes = 16;
constexpr int kMaxSegments = 128;

// Travels as a kernel argument (4 KiB on every device): no table in device memory to allocate, fill and keep alive.
struct Segments {
  const void* from[kMaxSegments];
  void* to[kMaxSegments];
  unsigned long long num_elements[kMaxSegments];
  unsigned int first_tile[kMaxSegments + 1];
  int count;
};
static_assert(sizeof(Segments) <= 4096, "does not fit in the arguments of a kernel");

template <class T, int kLength>
struct alignas(sizeof(T) * kLength) Pack {
  T values[kLength];
};

template <class From, class To>
__host__ __device__ constexpr int pack_length() {
  return kPackBytes / static_cast<int>(sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To));
}

template <class From, class To>
__host__ __device__ constexpr int tile_length() {
  return kThreads * kPacksPerThread * pack_length<From, To>();
}

// To nearest, ties to even; subnormal numbers are kept, as long as this file is not compiled with --ftz or fast math.
template <class To, class From>
__device__ __forceinline__ To convert(From value) {
  static_assert(sizeof(To) == sizeof(From), "a copy");
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 convert(float value) { return __float2bfloat16_rn(value); }
template <>
__device__ __forceinline__ __half convert(float value) { return __float2half_rn(value); }
template <>
__device__ __forceinline__ float convert(__nv_bfloat16 value) { return __bfloat162float(value); }
template <>
__device__ __forceinline__ float convert(__half value) { return __half2float(value); }
template <>
__device__ __forceinline__ float convert(double value) { return __double2float_rn(value); }

// The last segment whose first tile is not after this one.  The same for all threads of a block.
__device__ __forceinline__ int segment_of(const Segments& segments, unsigned int tile) {
  int low = 0;
  int high = segments.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (segments.first_tile[middle] <= tile) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// One block copies one tile of one segment: in packs of 16 bytes where both addresses allow it, else element by element
// (which is still coalesced, but takes more instructions).
template <class From, class To>
__global__ void __launch_bounds__(kThreads) copy_tiles(const __grid_constant__ Segments segments) {
  constexpr int kLength = pack_length<From, To>();
  constexpr int kTile = tile_length<From, To>();
  using FromPack = Pack<From, kLength>;
  using ToPack = Pack<To, kLength>;

  const int segment = segment_of(segments, blockIdx.x);
  const unsigned long long offset =
      static_cast<unsigned long long>(blockIdx.x - segments.first_tile[segment]) * kTile;
  const From* __restrict__ from = static_cast<const From*>(segments.from[segment]) + offset;
  To* __restrict__ to = static_cast<To*>(segments.to[segment]) + offset;
  const unsigned long long left = segments.num_elements[segment] - offset;
  const int num_elements = left < kTile ? static_cast<int>(left) : kTile;
  const int thread = static_cast<int>(threadIdx.x);

  const bool is_aligned = reinterpret_cast<unsigned long long>(from) % alignof(FromPack) == 0 &&
                          reinterpret_cast<unsigned long long>(to) % alignof(ToPack) == 0;
  if (!is_aligned) {
    for (int i = thread; i < num_elements; i += kThreads) to[i] = convert<To>(from[i]);
    return;
  }

  const int num_packs = num_elements / kLength;
  const auto* const from_packs = reinterpret_cast<const FromPack*>(from);
  auto* const to_packs = reinterpret_cast<ToPack*>(to);
  FromPack loaded[kPacksPerThread];
#pragma unroll
  for (int i = 0; i < kPacksPerThread; ++i) {
    const int pack = thread + i * kThreads;
    if (pack < num_packs) loaded[i] = from_packs[pack];
  }
#pragma unroll
  for (int i = 0; i < kPacksPerThread; ++i) {
    const int pack = thread + i * kThreads;
    if (pack < num_packs) {
      ToPack converted;
#pragma unroll
      for (int j = 0; j < kLength; ++j) converted.values[j] = convert<To>(loaded[i].values[j]);
      to_packs[pack] = converted;
    }
  }
  for (int i = num_packs * kLength + thread; i < num_elements; i += kThreads) to[i] = convert<To>(from[i]);
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // leave no error behind for the next caller, unless the device itself is lost
  throw CudaFailure(std::string(what) + " failed: " + cudaGetErrorString(status) + ".");
}

template <class From, class To>
void launch(const Copy& copy, cudaStream_t stream) {
  constexpr std::size_t kTile = tile_length<From, To>();
  constexpr std::size_t kMaxTiles = std::numeric_limits<int>::max();  // of a grid's first axis
  std::size_t next = 0;
  while (next < copy.segments.size()) {
    Segments segments;
    segments.count = 0;
    std::size_t num_tiles = 0;
    for (; next < copy.segments.size() && segments.count < kMaxSegments; ++next) {
      const Segment& segment = copy.segments[next];
      const std::size_t tiles = (segment.num_elements - 1) / kTile + 1;
      if (tiles > kMaxTiles) throw Refusal("A block is larger than one launch can copy.");
      if (num_tiles + tiles > kMaxTiles) break;
      segments.from[segments.count] = reinterpret_cast<const void*>(segment.from);
      segments.to[segments.count] = reinterpret_cast<void*>(segment.to);
      segments.num_elements[segments.count] = segment.num_elements;
      segments.first_tile[segments.count] = static_cast<unsigned int>(num_tiles);
      num_tiles += tiles;
      ++segments.count;
    }
    segments.first_tile[segments.count] = static_cast<unsigned int>(num_tiles);
    copy_tiles<From, To><<<static_cast<unsigned int>(num_tiles), kThreads, 0, stream>>>(segments);
    check(cudaGetLastError(), "Launching the copy");
  }
}

void launch(const Copy& copy, cudaStream_t stream) {
  if (copy.from == copy.to) {
    switch (size_of(copy.from)) {
      case 1: return launch<unsigned char, unsigned char>(copy, stream);
      case 2: return launch<unsigned short, unsigned short>(copy, stream);
      case 4: return launch<unsigned int, unsigned int>(copy, stream);
      default: return launch<unsigned long long, unsigned long long>(copy, stream);
    }
  }
  if (copy.to == Element::kBf16) return launch<float, __nv_bfloat16>(copy, stream);
  if (copy.to == Element::kFp16) return launch<float, __half>(copy, stream);
  if (copy.from == Element::kBf16) return launch<__nv_bfloat16, float>(copy, stream);
  if (copy.from == Element::kFp16) return launch<__half, float>(copy, stream);
  return launch<double, float>(copy, stream);
}

// The device that an address belongs to.  A kernel that follows a host address ends the whole CUDA context, so every
// address is looked up first (a table look-up in the driver, no synchronisation).
int device_of(std::uintptr_t address) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, reinterpret_cast<const void*>(address)), "Looking up an address");
  if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged) {
    throw Refusal("An address is not in device memory.");
  }
  return attributes.device;
}

int device_of(const Copy& copy) {
  const int device = device_of(copy.segments.front().from);
  for (const Segment& segment : copy.segments) {
    if (device_of(segment.from) != device || device_of(segment.to) != device) {
      throw Refusal("The addresses are on different devices.");
    }
  }
  return device;
}

// Makes a device current for the calling thread, and puts back the one that was.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&before_), "Asking for the current device");
    if (device != before_) check(cudaSetDevice(device), "Choosing the device");
  }
  ~CurrentDevice() { cudaSetDevice(before_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
};

void check_that_there_is(int device) {
  const Devices found = devices();
  if (device >= 0 && device < found.count) return;
  throw CudaUnavailable("No CUDA device " + std::to_string(device) + ": " +
                        (found.count == 0 ? found.reason : "there are " + std::to_string(found.count)) + ".");
}

// 13000 is 13.0.
std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

}  // namespace

bool is_built() { return true; }

Devices devices() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return {count, ""};
  cudaGetLastError();
  int driver = 0;
  cudaDriverGetVersion(&driver);  // stays 0 where no driver is installed
  if (driver == 0) return {0, "no CUDA driver is installed"};
  if (status == cudaErrorInsufficientDriver) {
    return {0, "the CUDA driver supports version " + version_text(driver) + ", this build needs " +
                   version_text(CUDART_VERSION)};
  }
  return {0, status == cudaSuccess ? "the CUDA driver sees no device" : cudaGetErrorString(status)};
}

Device device(int number) {
  check_that_there_is(number);
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, number), "Asking what a device is");
  return {properties.name, properties.major, properties.minor};
}

Memory memory(int device) {
  check_that_there_is(device);
  const CurrentDevice current(device);
  Memory memory{};
  check(cudaMemGetInfo(&memory.free_bytes, &memory.total_bytes), "Asking for the memory of a device");
  return memory;
}

void enqueue(const Copy& copy, std::uintptr_t stream) {
  const Devices found = devices();
  if (found.count == 0) throw CudaUnavailable("No CUDA device: " + found.reason + ".");
  if (copy.segments.empty()) return;
  const CurrentDevice current(device_of(copy));
  launch(copy, reinterpret_cast<cudaStream_t>(stream));
}

}  // namespace headrace::cuda
