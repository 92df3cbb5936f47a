// What runs a model's batches on a lane's own thread, without anybody's help.
#pragma once

#include <vector>

#include "batching/batch.h"
#include "batching/call.h"

namespace headrace::batching {

class Program {
 public:
  Program() = default;
  virtual ~Program() = default;
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Computes all rows of a batch whose feeds all have their bytes in one piece.  Returns which of the model's programs
  // ran; `outputs` are those of the signature, in its order.  Throws whatever went wrong.  Any number of lanes at once.
  virtual int run(const Batch& batch, std::vector<Output>& outputs) = 0;
};

}  // namespace headrace::batching
