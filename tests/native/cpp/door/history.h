// A history as a complete server tells it: each reader what there is by now, then that he may read along.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "door/metadata.h"
#include "door/relay.h"
#include "door/scripted_plane.h"
#include "door/slices.h"

namespace headrace::door {

inline std::string value_in(const grpc::GenericCallbackServerContext& context, std::string_view key) {
  const auto found = context.client_metadata().find(grpc::string_ref(key.data(), key.size()));
  return found == context.client_metadata().end() ? "" : std::string(found->second.data(), found->second.size());
}

class History {
 public:
  // `period` and `wait` are what readers are said to have asked for, in microseconds.
  explicit History(std::string period = "0", std::string wait = "0")
      : period_(std::move(period)), wait_(std::move(wait)) {}

  void add(Kind kind, std::string text) {
    std::set<Shared*> shared;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      entries_.emplace_back(kind, std::move(text));
      shared = shared_;
    }
    for (Shared* each : shared) each->get_on();
  }

  void end(const grpc::Status& status) {
    std::set<Shared*> shared;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ending_ = status;
      has_ended_ = true;
      shared = shared_;
    }
    for (Shared* each : shared) each->get_on();
  }

  // Let the next reader read along from this place, whatever he has got.
  void understate(std::size_t place) {
    const std::lock_guard<std::mutex> lock(mutex_);
    understated_ = place;
  }

  std::size_t num_shared() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return shared_.size();
  }
  // Calls so far of readers who were asked for again.
  int num_again() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return num_again_;
  }
  int num_shared_ever() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return num_shared_ever_;
  }

  grpc::ServerGenericBidiReactor* answer(grpc::GenericCallbackServerContext& context) {
    if (const std::string after = value_in(context, kShared); !after.empty()) {
      return new Shared(*this, std::stoull(after));
    }
    return new Alone(*this, context);
  }

 private:
  using Said = std::pair<Kind, std::string>;

  // The stream that many read.  Whoever adds to the history does not end it at the same time.
  class Shared final : public grpc::ServerGenericBidiReactor {
   public:
    Shared(History& history, std::size_t after) : history_(history), next_(after) {
      const std::lock_guard<std::mutex> lock(history_.mutex_);
      history_.shared_.insert(this);
      ++history_.num_shared_ever_;
      StartRead(&request_);
    }
    void OnReadDone(bool ok) override {
      if (ok) get_on();
    }
    void OnWriteDone(bool ok) override {
      {
        const std::lock_guard<std::mutex> lock(history_.mutex_);
        is_writing_ = false;
        is_cancelled_ = is_cancelled_ || !ok;
      }
      get_on();
    }
    void OnCancel() override {
      {
        const std::lock_guard<std::mutex> lock(history_.mutex_);
        is_cancelled_ = true;
      }
      get_on();
    }
    void OnDone() override {
      {
        const std::lock_guard<std::mutex> lock(history_.mutex_);
        history_.shared_.erase(this);
      }
      delete this;
    }
    void get_on() {
      const std::lock_guard<std::mutex> lock(history_.mutex_);
      if (is_writing_ || is_finished_) return;
      if (is_cancelled_ || (history_.has_ended_ && next_ == history_.entries_.size())) {
        is_finished_ = true;
        Finish(is_cancelled_ ? grpc::Status::CANCELLED : history_.ending_);
      } else if (next_ < history_.entries_.size()) {
        const auto& [kind, text] = history_.entries_[next_++];
        message_ = message_of(plane::block_of(header(kind, kind == Kind::kSign ? 0 : next_) + text));
        is_writing_ = true;
        StartWrite(&message_);
      }
    }

   private:
    static std::string header(Kind kind, std::uint64_t place) {
      std::uint64_t word = place << 2 | static_cast<std::uint64_t>(kind);
      std::string bytes;
      for (int i = 0; i < 8; ++i, word >>= 8) bytes += static_cast<char>(word & 0xff);
      return bytes;
    }

    History& history_;
    std::size_t next_;
    grpc::ByteBuffer request_;
    grpc::ByteBuffer message_;
    bool is_writing_ = false;
    bool is_cancelled_ = false;
    bool is_finished_ = false;
  };

  // What one reader is told before he reads along: a snapshot, and what he has not got yet.
  class Alone final : public grpc::ServerGenericBidiReactor {
   public:
    Alone(History& history, grpc::GenericCallbackServerContext& context) : context_(context) {
      const std::lock_guard<std::mutex> lock(history.mutex_);
      const std::string after = value_in(context, kAfter);
      if (after.empty()) words_.push_back("snapshot");
      else ++history.num_again_;
      for (std::size_t i = after.empty() ? 0 : std::stoull(after); i < history.entries_.size(); ++i) {
        if (history.entries_[i].first != Kind::kSign) words_.push_back(history.entries_[i].second);
      }
      std::size_t place = history.entries_.size();
      if (history.understated_ && after.empty()) {
        place = *std::exchange(history.understated_, std::nullopt);
        words_.resize(1 + place);
      }
      share_ = std::to_string(place) + ' ' + history.period_ + ' ' + history.wait_ + " a history";
      StartRead(&request_);
    }
    void OnReadDone(bool ok) override {
      if (ok) next();
    }
    void OnWriteDone(bool ok) override { ok ? next() : Finish(grpc::Status::CANCELLED); }
    void OnDone() override { delete this; }

   private:
    void next() {
      if (num_told_ == words_.size()) {
        context_.AddTrailingMetadata(std::string(kShare), share_);
        return Finish(grpc::Status::OK);
      }
      message_ = message_of(plane::block_of(words_[num_told_++]));
      StartWrite(&message_);
    }

    grpc::GenericCallbackServerContext& context_;
    std::vector<std::string> words_;
    std::size_t num_told_ = 0;
    std::string share_;
    grpc::ByteBuffer request_;
    grpc::ByteBuffer message_;
  };

  std::optional<std::size_t> understated_;
  const std::string period_;
  const std::string wait_;
  std::mutex mutex_;
  std::vector<Said> entries_;
  bool has_ended_ = false;
  grpc::Status ending_;
  std::set<Shared*> shared_;
  int num_again_ = 0;
  int num_shared_ever_ = 0;
};

}  // namespace headrace::door
