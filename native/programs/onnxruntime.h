// ONNX Runtime through the C interface of its shared library, which is opened when the first program is.
//
// The interface is a table of functions that only ever grows: each has kept its place since the first version, so the
// few that are called here are declared here, and any build of the library will do.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "batching/batch.h"
#include "batching/call.h"
#include "batching/program.h"

namespace headrace::programs {

// What the runtime says when something went wrong.
class OnnxRuntimeError final : public std::runtime_error {
 public:
  // `code` is one of the runtime's, from 1.
  OnnxRuntimeError(int code, const std::string& message);
  int code() const noexcept { return code_; }

 private:
  int code_;
};

// The library.  It stays in memory until the process ends.
class OnnxRuntime {
 public:
  // The first call of a process opens the file, and the others get what it opened.  Throws std::runtime_error when it
  // is no such library; the next call tries again.
  static const OnnxRuntime& load(const std::string& path);
  OnnxRuntime(const OnnxRuntime&) = delete;
  OnnxRuntime& operator=(const OnnxRuntime&) = delete;

  const std::string& version() const noexcept { return version_; }

 private:
  friend class OnnxProgram;
  struct Functions;
  struct Values;

  explicit OnnxRuntime(const std::string& path);
  ~OnnxRuntime();

  // Throws OnnxRuntimeError unless there is no status, which is the runtime's word for success.
  void check(void* status) const;

  std::unique_ptr<const Functions> functions_;
  std::string version_;
  void* environment_ = nullptr;
  void* memory_ = nullptr;  // says that tensors lie in the memory of the host
};

// One program on the CPU.
class OnnxProgram final : public batching::Program {
 public:
  // Reads the file at `path`.  `num_threads` compute one run; `optimises` is false for who only asks whether it can be
  // read.  The names are those of the inputs and outputs of every run.  Throws OnnxRuntimeError.
  OnnxProgram(const OnnxRuntime& runtime, const std::string& path, int num_threads, bool optimises,
              std::vector<std::string> input_names, std::vector<std::string> output_names);
  ~OnnxProgram() override;

  // Feeds in the order of the input names.  Throws OnnxRuntimeError, std::bad_alloc.
  void run(const std::vector<batching::Feed>& feeds, std::vector<batching::Output>& outputs) const;
  int run(const batching::Batch& batch, std::vector<batching::Output>& outputs) override;

  std::size_t num_inputs() const noexcept { return inputs_.size(); }

 private:
  batching::Output output_of(void* value) const;

  const OnnxRuntime& runtime_;
  const std::vector<std::string> input_names_, output_names_;
  std::vector<const char*> inputs_, outputs_;  // the names as the runtime wants them
  void* session_ = nullptr;
};

}  // namespace headrace::programs
