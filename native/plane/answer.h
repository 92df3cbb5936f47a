// The answer of one call, written as its rows come out of batches: measured once, then every row is copied straight to
// its place in the message.
//
// What is known last, the timing and which program ran, stands last; protobuf does not mind the order of fields.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "batching/call.h"
#include "plane/bytes.h"
#include "plane/routes.h"
#include "plane/wire/outputs.h"
#include "plane/wire/writer.h"

namespace headrace::plane {

enum class Form {
  kPredict,        // headrace.inference.v1.PredictResponse
  kPredictStream,  // PredictStreamResponse
  kInfer,          // inference.ModelInferResponse
  kInferStream,    // ModelStreamInferResponse
};

class Answer {
 public:
  // `id` is the caller's, empty for kPredict; it and `version` live as long as the answer.  `outputs` are places in the
  // signature.  `is_raw`: numbers as bytes; else as values, in the typed fields that each protocol has for them.
  void begin(Form form, const Version& version, std::string_view id, const std::vector<std::size_t>& outputs,
             bool is_raw);

  // Copies the rows of one slice.
  void take(const batching::Share& share) noexcept;

  // After the last slice: the message; or an empty block when what the model returned cannot be written here: objects,
  // or slices that do not fit together.
  Block finish(const batching::Timing& timing, double respond_seconds) noexcept;

 private:
  // One output, and where its bytes go.
  struct Place {
    std::size_t output = 0;
    Element element = Element::kFp32;
    std::vector<std::int64_t> shape;
    std::size_t row_bytes = 0;
    std::size_t size_bytes = 0;
    std::byte* data = nullptr;
    std::unique_ptr<std::byte[]> apart;  // of values whose size on the wire is known when all are there
  };

  bool measure(const batching::Share& share);
  // Whether the elements are on the wire what they are in memory.
  bool is_same_on_wire(const Place& place) const;
  bool still_fits(const batching::Share& share) const;
  void lay_out();
  wire::OutputHead head_of(const Place& place) const;
  void write_tail(wire::Writer& writer, const batching::Timing& timing, double respond_seconds) const;
  std::size_t size_of_prefix(std::size_t inner) const;
  void write_prefix(wire::Writer& writer, std::size_t inner) const;

  bool is_infer() const { return form_ == Form::kInfer || form_ == Form::kInferStream; }
  bool is_stream() const { return form_ == Form::kPredictStream || form_ == Form::kInferStream; }
  std::size_t largest_tail() const;

  Form form_ = Form::kPredict;
  const Version* version_ = nullptr;
  std::string_view id_;
  std::vector<Place> places_;
  bool is_raw_ = true;
  bool has_begun_ = false;
  bool has_failed_ = false;
  bool is_laid_out_late_ = false;

  Block block_;
  std::size_t prefix_ = 0;  // room before the body
  std::size_t body_ = 0;    // bytes of the outputs
};

}  // namespace headrace::plane
