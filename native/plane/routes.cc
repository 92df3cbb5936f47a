#include "plane/routes.h"

#include <atomic>
#include <utility>

namespace headrace::plane {
namespace {

// No name has this character in it.
constexpr char kSeparator = '/';

std::string key_of(std::string_view model, std::string_view version) {
  std::string key;
  key.reserve(model.size() + 1 + version.size());
  key.append(model).push_back(kSeparator);
  key.append(version);
  return key;
}

std::size_t arm_of_this_thread(std::size_t num_arms) {
  static std::atomic<std::size_t> next{0};
  thread_local const std::size_t arm = next.fetch_add(1, std::memory_order_relaxed);
  return arm % num_arms;
}

}  // namespace

void Routes::add(std::string_view model, std::string_view version, std::shared_ptr<const Route> route) {
  routes_[key_of(model, version)] = std::move(route);
}

std::shared_ptr<const Route> Routes::find(std::string_view model, std::string_view version) const {
  if (model.find(kSeparator) != std::string_view::npos) return nullptr;
  const auto found = routes_.find(key_of(model, version));
  return found == routes_.end() ? nullptr : found->second;
}

Signpost::Signpost() { turn(std::make_shared<const Routes>()); }

void Signpost::turn(std::shared_ptr<const Routes> routes) {
  for (Arm& arm : arms_) {
    std::shared_ptr<const Routes> old = routes;
    {
      const std::lock_guard lock(arm.mutex);
      old.swap(arm.routes);
    }
  }
}

std::shared_ptr<const Route> Signpost::find(std::string_view model, std::string_view version) const {
  const Arm& arm = arms_[arm_of_this_thread(kNumArms)];
  const std::lock_guard lock(arm.mutex);
  return arm.routes->find(model, version);
}

}  // namespace headrace::plane
