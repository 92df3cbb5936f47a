#include "door/unpacker.h"

#include <utility>

namespace headrace::door {

Unpacker::~Unpacker() {
  {
    const std::lock_guard lock(mutex_);
    is_over_ = true;
  }
  bell_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Unpacker::start(grpc::ByteBuffer& message, Tell tell) {
  {
    const std::lock_guard lock(mutex_);
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    parcels_.push_back({&message, std::move(tell)});
  }
  bell_.notify_one();
}

void Unpacker::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    bell_.wait(lock, [this] { return is_over_ || !parcels_.empty(); });
    if (parcels_.empty()) return;
    Parcel parcel = std::move(parcels_.front());
    parcels_.pop_front();
    lock.unlock();
    parcel.tell(inflation_.open(*parcel.message));
    lock.lock();
  }
}

}  // namespace headrace::door
