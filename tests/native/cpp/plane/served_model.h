// A version that is served: a real batcher, and a lane that doubles what it gets, when it is allowed to.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "batching/batcher.h"
#include "plane/data_plane.h"

namespace headrace::plane::testing {

class ServedModel {
 public:
  // Multiplies by `factor`; answers say that they come from `name`.
  explicit ServedModel(float factor = 2, std::string name = "models/m/versions/1", std::int64_t max_waiting_rows = 1000)
      : factor_(factor),
        lanes_(std::make_shared<batching::LaneGroup>(1)),
        meters_(std::make_shared<batching::Meters>(std::vector<double>{1}, std::vector<double>{1})),
        batcher_(batching::Batcher::open({8, 1 << 20, max_waiting_rows, 1 << 20, 0}, true, lanes_, meters_)) {
    auto version = std::make_shared<Version>();
    version->name = name;
    version->batcher = batcher_;
    version->inputs = {{"x", Element::kFp32, {-1, 2}, true}};
    version->outputs = {{"y", Element::kFp32, {-1, 2}, false}};
    version->takes_rows = true;
    std::string model_version = "\x0a";
    model_version.push_back(static_cast<char>(name.size()));
    version->provenance = {{model_version + name, model_version + name}};
    version_ = version;
    thread_ = std::thread([this] { run(); });
  }

  ~ServedModel() {
    let_go();
    batcher_->close(nullptr, "SERVER_DRAINING");
    lanes_->close();
    thread_.join();
  }

  // Runs wait until `let_go`.
  void hold() { is_held_ = true; }
  void let_go() {
    const std::lock_guard lock(mutex_);
    is_held_ = false;
    bell_.notify_all();
  }
  // Waits until a run is being held.
  void wait_until_held() {
    std::unique_lock lock(mutex_);
    bell_.wait(lock, [this] { return num_held_ > 0; });
  }
  // From now on every run fails.
  void break_down() { is_broken_ = true; }

  batching::Batcher& batcher() { return *batcher_; }
  std::shared_ptr<const Route> route() const { return std::make_shared<const Route>(Route{version_, "metadata"}); }

  // The names m and m/versions/1 mean this model.
  std::shared_ptr<const Routes> routes() const {
    auto routes = std::make_shared<Routes>();
    routes->add("m", "", route());
    routes->add("m", "1", route());
    return routes;
  }

 private:
  void run() {
    while (!lanes_->is_closed()) {
      std::unique_ptr<batching::Batch> batch = lanes_->take(0);
      if (!batch) continue;
      {
        std::unique_lock lock(mutex_);
        ++num_held_;
        bell_.notify_all();
        bell_.wait(lock, [this] { return !is_held_; });
        --num_held_;
      }
      if (is_broken_) {
        batcher_->fail(std::move(batch), std::make_shared<std::string>("broken"), "MODEL_FAILED");
        continue;
      }
      const batching::Feed& feed = batch->feeds[0];
      const auto count = static_cast<std::size_t>(feed.shape[0] * feed.shape[1]);
      std::vector<float> values(count);
      std::memcpy(values.data(), feed.data, count * sizeof(float));
      for (float& value : values) value *= factor_;
      batching::Output output;
      output.element = Element::kFp32;
      output.shape = feed.shape;
      output.data = reinterpret_cast<const std::byte*>(values.data());
      output.size_bytes = count * sizeof(float);
      output.row_bytes = 2 * sizeof(float);
      batcher_->settle(batch, {output}, 0.001);
    }
  }

  const float factor_;
  std::shared_ptr<batching::LaneGroup> lanes_;
  std::shared_ptr<batching::Meters> meters_;
  std::shared_ptr<batching::Batcher> batcher_;
  std::shared_ptr<const Version> version_;
  std::mutex mutex_;
  std::condition_variable bell_;
  std::atomic<bool> is_held_{false};
  std::atomic<bool> is_broken_{false};
  int num_held_ = 0;
  std::thread thread_;
};

inline Status told(const batching::Refusal& refusal) {
  return {13, *static_cast<const std::string*>(refusal.error.get()), {}};
}

}  // namespace headrace::plane::testing
