// A data plane that answers by the first letter of a request:
//   'e' with the request, 'f' with a failure, 'p' by passing it on, 'w' when it is cancelled, 'l' later, from a thread of
//   its own.
#pragma once

#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "plane/plane.h"

namespace headrace::plane {

inline std::string text_of(const Bytes& bytes) {
  std::string text;
  for (const Piece& piece : bytes.pieces) text.append(reinterpret_cast<const char*>(piece.data), piece.size);
  return text;
}

inline Block block_of(const std::string& text) {
  Block block(text.size());
  if (!text.empty()) std::memcpy(block.data(), text.data(), text.size());
  return block;
}

class ScriptedPlane final : public Plane {
 public:
  std::atomic<int> num_cancelled{0};
  std::atomic<int> num_sent{0};
  std::atomic<double> last_deadline{0};

  std::shared_ptr<Exchange> open(Method, const CallInfo& info, Responder& responder) override {
    last_deadline = info.deadline;
    return std::make_shared<ScriptedExchange>(*this, std::string(info.request_id), responder);
  }

  std::shared_ptr<Conversation> converse(Method method, const CallInfo& info, Stream& stream) override {
    return std::make_shared<ScriptedConversation>(*this, method, std::string(info.request_id), info.deadline, stream);
  }

 private:
  class ScriptedExchange final : public Exchange {
   public:
    ScriptedExchange(ScriptedPlane& plane, std::string request_id, Responder& responder)
        : plane_(plane), request_id_(std::move(request_id)), responder_(responder) {}

    void start(Bytes request) noexcept override {
      const std::string text = text_of(request);
      switch (text.empty() ? 'e' : text.front()) {
        case 'f': end([&] { responder_.fail({8, "full", std::string("\x08\x08", 2)}); }); break;
        case 'p': end([&] { responder_.pass(); }); break;
        case 'w': break;
        case 'l': std::thread([&responder = responder_, text] { responder.respond(block_of(text)); }).detach(); break;
        default: end([&] { responder_.respond(block_of(text)); });
      }
    }
    void cancel() noexcept override {
      ++plane_.num_cancelled;
      end([&] { responder_.fail({1, "left", ""}); });
    }
    void sent() noexcept override { ++plane_.num_sent; }
    std::string_view request_id() const noexcept override { return request_id_; }

   private:
    template <class Act>
    void end(Act act) {
      if (!is_over_.exchange(true)) act();
    }

    ScriptedPlane& plane_;
    const std::string request_id_;
    Responder& responder_;
    std::atomic<bool> is_over_{false};
  };

  // Answers each message before it reads the next one.
  class ScriptedConversation final : public Conversation, public std::enable_shared_from_this<ScriptedConversation> {
   public:
    ScriptedConversation(ScriptedPlane& plane, Method method, std::string request_id, double deadline, Stream& stream)
        : plane_(plane), method_(method), request_id_(std::move(request_id)), deadline_(deadline), stream_(stream) {}

    void start() noexcept override { stream_.read(); }
    void has_read(std::optional<Bytes> message) noexcept override {
      if (!message) return stream_.finish(is_cancelled_ ? Status{1, "left", ""} : Status{});
      const std::string text = text_of(*message);
      if (text.rfind('p', 0) != 0) return stream_.write(block_of(text));
      const Method unary = method_ == Method::kPredictStream ? Method::kPredict : Method::kModelInfer;
      stream_.pass(unary, *message, deadline_, std::make_shared<Back>(shared_from_this()));
    }
    void stop(const Status& status) noexcept override { stream_.finish(status); }
    void has_written(bool is_ok) noexcept override {
      if (is_ok) return stream_.read();
      stream_.finish({1, "left", ""});
    }
    void cancel() noexcept override {
      is_cancelled_ = true;
      ++plane_.num_cancelled;
    }
    std::string_view request_id() const noexcept override { return request_id_; }

   private:
    class Back final : public Passage {
     public:
      explicit Back(std::shared_ptr<ScriptedConversation> talk) : talk_(std::move(talk)) {}
      void answered(Bytes response) noexcept override { talk_->stream_.write(block_of(text_of(response))); }
      void failed(const Status& status) noexcept override {
        talk_->stream_.write(block_of("failed " + std::to_string(status.code) + " " + status.message));
      }

     private:
      std::shared_ptr<ScriptedConversation> talk_;
    };

    ScriptedPlane& plane_;
    const Method method_;
    const std::string request_id_;
    const double deadline_;
    Stream& stream_;
    std::atomic<bool> is_cancelled_{false};
  };
};

}  // namespace headrace::plane
