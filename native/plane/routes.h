// What names mean now: every name that means a version which is ready, as one immutable snapshot, swapped whole.
//
// A call that has found its route keeps the version's batcher alive, and finishes there whatever the next snapshot says.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "batching/batcher.h"
#include "gather/element.h"
#include "plane/categories.h"

namespace headrace::plane {

// What a version accepts or returns under one name.
struct TensorSpec {
  std::string name;
  Element element = Element::kFp32;
  std::vector<std::int64_t> shape;  // -1 where any length is accepted
  bool finite_only = false;
  // Of integers that stand for texts, which callers may send in their place; else nothing.
  std::shared_ptr<const Categories> categories{};
};

// What is said of the program that ran, in the words of both protocols, encoded once.
struct Provenance {
  std::string predict;  // fields of PredictResponse: model_version, provenance
  std::string infer;    // fields of ModelInferResponse: model_name, model_version, parameters
};

// A version that is loaded.
struct Version {
  std::string name;  // models/{model}/versions/{version}
  std::shared_ptr<batching::Batcher> batcher;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  bool takes_rows = false;  // the first axis of all inputs and outputs counts rows
  std::vector<Provenance> provenance;  // by the variant that ran; never empty
};

struct Route {
  std::shared_ptr<const Version> version;
  std::string metadata;  // a ModelMetadataResponse
};

class Routes {
 public:
  // `model` is `m` or `m@alias`; `version` a number, or empty where the name has none.
  void add(std::string_view model, std::string_view version, std::shared_ptr<const Route> route);

  std::shared_ptr<const Route> find(std::string_view model, std::string_view version) const;
  std::size_t size() const { return routes_.size(); }

 private:
  std::unordered_map<std::string, std::shared_ptr<const Route>> routes_;
};

// Holds the snapshot.  Readers on different threads do not wait for each other, nor for a writer for longer than it
// takes to exchange a pointer; nothing of an old snapshot is kept but what calls have found in it.
class Signpost {
 public:
  Signpost();

  // From when this returns, nobody finds anything in an earlier snapshot.
  void turn(std::shared_ptr<const Routes> routes);
  std::shared_ptr<const Route> find(std::string_view model, std::string_view version) const;

 private:
  static constexpr std::size_t kNumArms = 16;

  // Threads are spread over the arms, so that each mostly has a lock and a cache line of its own.
  struct alignas(64) Arm {
    mutable std::mutex mutex;
    std::shared_ptr<const Routes> routes;
  };

  std::array<Arm, kNumArms> arms_;
};

}  // namespace headrace::plane
