#include "programs/onnxruntime.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <optional>
#include <utility>

namespace headrace::programs {
namespace {

// What the runtime calls its numbers.
enum OnnxElement : int {
  kFloat = 1, kUint8 = 2, kInt8 = 3, kUint16 = 4, kInt16 = 5, kInt32 = 6, kInt64 = 7, kBool = 9, kFloat16 = 10,
  kDouble = 11, kUint32 = 12, kUint64 = 13, kBfloat16 = 16, kFloat8E4M3Fn = 17, kFloat8E5M2 = 19,
};

// In the order of `Element`.
constexpr std::array<OnnxElement, kElements.size()> kOnnxElements{
    kFloat, kDouble, kFloat16, kBfloat16, kFloat8E4M3Fn, kFloat8E5M2, kInt8, kInt16,
    kInt32, kInt64, kUint8, kUint16, kUint32, kUint64, kBool,
};

std::optional<Element> element_of(int onnx_element) {
  for (std::size_t i = 0; i < kOnnxElements.size(); ++i) {
    if (kOnnxElements[i] == onnx_element) return static_cast<Element>(i);
  }
  return std::nullopt;
}

constexpr std::uint32_t kFirstVersion = 1;
constexpr int kErrorsOnly = 3, kSequential = 0, kDoesNotOptimise = 0, kDeviceAllocator = 0, kDefaultMemory = 0;

// What its messages begin with where it raises them in Python.
std::string code_name(int code) {
  constexpr std::array<const char*, 15> kNames{
      "SUCCESS", "FAIL", "INVALID_ARGUMENT", "NO_SUCHFILE", "NO_MODEL", "ENGINE_ERROR", "RUNTIME_EXCEPTION",
      "INVALID_PROTOBUF", "MODEL_LOADED", "NOT_IMPLEMENTED", "INVALID_GRAPH", "EP_FAIL", "MODEL_LOAD_CANCELED",
      "MODEL_REQUIRES_COMPILATION", "NOT_FOUND",
  };
  const auto place = static_cast<std::size_t>(code);
  return place < kNames.size() ? kNames[place] : "GENERAL ERROR";
}

bool lies_in(const batching::Output& output, const batching::Feed& feed, std::size_t feed_bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(feed.data), data = reinterpret_cast<std::uintptr_t>(output.data);
  return begin < data + output.size_bytes && data < begin + feed_bytes;
}

std::size_t size_of(const batching::Feed& feed) {
  std::size_t size_bytes = size_of(*feed.element);
  for (const std::int64_t length : feed.shape) size_bytes *= static_cast<std::size_t>(length);
  return size_bytes;
}

// An output that is one of the inputs lies in memory that others own and use again.
void own(batching::Output& output, const std::vector<batching::Feed>& feeds) {
  const bool is_input = std::any_of(feeds.begin(), feeds.end(),
                                    [&](const batching::Feed& feed) { return lies_in(output, feed, size_of(feed)); });
  if (!is_input) return;
  const batching::Buffer copy(output.size_bytes);
  std::memcpy(copy.data(), output.data, output.size_bytes);
  output.data = copy.data();
  output.owner = copy.memory();
}

// Calls a function when it goes, unless it has nothing to call it with.
class Released {
 public:
  using Release = void (*)(void*);
  Released(Release release, void* object) : release_(release), object_(object) {}
  Released(Released&& other) noexcept : release_(other.release_), object_(std::exchange(other.object_, nullptr)) {}
  Released& operator=(Released&&) = delete;
  ~Released() {
    if (object_ != nullptr) release_(object_);
  }
  void* get() const { return object_; }
  void* hand_on() { return std::exchange(object_, nullptr); }

 private:
  Release release_;
  void* object_;
};

}  // namespace

OnnxRuntimeError::OnnxRuntimeError(int code, const std::string& message)
    : std::runtime_error("[ONNXRuntimeError] : " + std::to_string(code) + " : " + code_name(code) + " : " + message),
      code_(code) {}

// What is called, by its place in the table.  A status is null for success; what is made is released by who made it.
struct OnnxRuntime::Functions {
  using Status = void*;
  using Release = void (*)(void*);
  using Create = Status (*)(void** made);
  using SetNumber = Status (*)(void* options, int number);

  explicit Functions(void* const* table) {
    const auto take = [table](auto& function, std::size_t place) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(table[place]);
    };
    take(error_code, 1);
    take(error_message, 2);
    take(create_environment, 3);
    take(create_session, 7);
    take(run, 9);
    take(create_session_options, 10);
    take(set_execution_mode, 13);
    take(set_log_severity, 22);
    take(set_optimization, 23);
    take(set_intra_op_threads, 24);
    take(set_inter_op_threads, 25);
    take(create_tensor_over, 49);
    take(tensor_data, 51);
    take(tensor_element, 60);
    take(num_dimensions, 61);
    take(dimensions, 62);
    take(num_elements, 64);
    take(tensor_info, 65);
    take(create_cpu_memory_info, 69);
    take(release_environment, 92);
    take(release_status, 93);
    take(release_session, 95);
    take(release_value, 96);
    take(release_tensor_info, 99);
    take(release_session_options, 100);
  }

  int (*error_code)(const void* status);
  const char* (*error_message)(const void* status);
  Status (*create_environment)(int log_severity, const char* name, void** made);
  Status (*create_session)(const void* environment, const char* path, const void* options, void** made);
  Status (*run)(void* session, const void* options, const char* const* input_names, const void* const* inputs,
                std::size_t num_inputs, const char* const* output_names, std::size_t num_outputs, void** outputs);
  Create create_session_options;
  SetNumber set_execution_mode, set_log_severity, set_optimization, set_intra_op_threads, set_inter_op_threads;
  Status (*create_tensor_over)(const void* memory, void* data, std::size_t size_bytes, const std::int64_t* shape,
                               std::size_t num_axes, int element, void** made);
  Status (*tensor_data)(void* value, void** data);
  Status (*tensor_element)(const void* info, int* element);
  Status (*num_dimensions)(const void* info, std::size_t* number);
  Status (*dimensions)(const void* info, std::int64_t* lengths, std::size_t number);
  Status (*num_elements)(const void* info, std::size_t* number);
  Status (*tensor_info)(const void* value, void** made);
  Status (*create_cpu_memory_info)(int allocator, int memory, void** made);
  Release release_environment, release_status, release_session, release_value, release_tensor_info;
  Release release_session_options;
};

// Values that are released together.
struct OnnxRuntime::Values {
  Values(Functions::Release release_one, std::size_t number) : release(release_one), all(number, nullptr) {}
  Values(const Values&) = delete;
  Values& operator=(const Values&) = delete;
  ~Values() {
    for (void* const value : all) {
      if (value != nullptr) release(value);
    }
  }

  const Functions::Release release;
  std::vector<void*> all;
};

const OnnxRuntime& OnnxRuntime::load(const std::string& path) {
  static std::mutex mutex;
  // Never destroyed: threads of lanes may outlive the end of the program's main.
  static const OnnxRuntime* loaded = nullptr;
  const std::lock_guard lock(mutex);
  if (loaded == nullptr) loaded = new OnnxRuntime(path);
  return *loaded;
}

OnnxRuntime::OnnxRuntime(const std::string& path) {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  struct Base {
    void* const* (*table)(std::uint32_t version);
    const char* (*version)();
  };
  using GetBase = const Base* (*)();
  const auto get_base = reinterpret_cast<GetBase>(dlsym(library, "OrtGetApiBase"));
  if (get_base == nullptr) throw std::runtime_error(path + " is no ONNX Runtime");
  const Base* const base = get_base();
  version_ = base->version();
  void* const* const table = base->table(kFirstVersion);
  if (table == nullptr) throw std::runtime_error("ONNX Runtime " + version_ + " has another interface");
  functions_ = std::make_unique<const Functions>(table);
  check(functions_->create_environment(kErrorsOnly, "headrace", &environment_));
  check(functions_->create_cpu_memory_info(kDeviceAllocator, kDefaultMemory, &memory_));
}

OnnxRuntime::~OnnxRuntime() {
  if (environment_ != nullptr) functions_->release_environment(environment_);
}

void OnnxRuntime::check(void* status) const {
  if (status == nullptr) return;
  const Released released(functions_->release_status, status);
  throw OnnxRuntimeError(functions_->error_code(status), functions_->error_message(status));
}

OnnxProgram::OnnxProgram(const OnnxRuntime& runtime, const std::string& path, int num_threads, bool optimises,
                         std::vector<std::string> input_names, std::vector<std::string> output_names)
    : runtime_(runtime), input_names_(std::move(input_names)), output_names_(std::move(output_names)) {
  for (const std::string& name : input_names_) inputs_.push_back(name.c_str());
  for (const std::string& name : output_names_) outputs_.push_back(name.c_str());
  const OnnxRuntime::Functions& call = *runtime_.functions_;
  void* made = nullptr;
  runtime_.check(call.create_session_options(&made));
  const Released options(call.release_session_options, made);
  runtime_.check(call.set_intra_op_threads(options.get(), num_threads));
  runtime_.check(call.set_inter_op_threads(options.get(), 1));
  runtime_.check(call.set_execution_mode(options.get(), kSequential));
  runtime_.check(call.set_log_severity(options.get(), kErrorsOnly));
  if (!optimises) runtime_.check(call.set_optimization(options.get(), kDoesNotOptimise));
  runtime_.check(call.create_session(runtime_.environment_, path.c_str(), options.get(), &session_));
}

OnnxProgram::~OnnxProgram() {
  if (session_ != nullptr) runtime_.functions_->release_session(session_);
}

// The runtime makes what it needs for each run anew: to bind memory of ours beforehand was measured to save a twentieth of
// the smallest run.
void OnnxProgram::run(const std::vector<batching::Feed>& feeds, std::vector<batching::Output>& outputs) const {
  const OnnxRuntime::Functions& call = *runtime_.functions_;
  OnnxRuntime::Values given(call.release_value, feeds.size());
  for (std::size_t i = 0; i < feeds.size(); ++i) {
    const batching::Feed& feed = feeds[i];
    runtime_.check(call.create_tensor_over(runtime_.memory_, feed.data, size_of(feed), feed.shape.data(),
                                           feed.shape.size(), kOnnxElements[static_cast<std::size_t>(*feed.element)],
                                           &given.all[i]));
  }
  OnnxRuntime::Values found(call.release_value, outputs_.size());
  runtime_.check(call.run(session_, nullptr, inputs_.data(), given.all.data(), given.all.size(), outputs_.data(),
                          outputs_.size(), found.all.data()));
  outputs.clear();
  outputs.reserve(found.all.size());
  for (void*& value : found.all) {
    outputs.push_back(output_of(std::exchange(value, nullptr)));
    own(outputs.back(), feeds);
  }
}

int OnnxProgram::run(const batching::Batch& batch, std::vector<batching::Output>& outputs) {
  run(batch.feeds, outputs);
  return 0;
}

// Owns the value, whatever happens.
batching::Output OnnxProgram::output_of(void* value) const {
  const OnnxRuntime::Functions& call = *runtime_.functions_;
  batching::Output output;
  output.owner = std::shared_ptr<const void>(value, call.release_value);
  void* made = nullptr;
  runtime_.check(call.tensor_info(value, &made));
  const Released info(call.release_tensor_info, made);
  int element = 0;
  runtime_.check(call.tensor_element(info.get(), &element));
  output.element = element_of(element);
  if (!output.element) throw std::runtime_error("The program has an output of elements that are no numbers.");
  std::size_t num_axes = 0, num_elements = 0;
  runtime_.check(call.num_dimensions(info.get(), &num_axes));
  output.shape.resize(num_axes);
  runtime_.check(call.dimensions(info.get(), output.shape.data(), num_axes));
  runtime_.check(call.num_elements(info.get(), &num_elements));
  output.size_bytes = num_elements * size_of(*output.element);
  if (num_axes > 0 && output.shape[0] > 0) {
    output.row_bytes = output.size_bytes / static_cast<std::size_t>(output.shape[0]);
  }
  void* data = nullptr;
  runtime_.check(call.tensor_data(value, &data));
  output.data = static_cast<const std::byte*>(data);
  return output;
}

}  // namespace headrace::programs
