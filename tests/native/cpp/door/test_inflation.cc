// What compressed messages become, and what they may cost.
#include "door/inflation.h"

#include <doctest/doctest.h>
#include <zlib.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "door/scripted_plane.h"
#include "door/slices.h"

namespace headrace::door {
namespace {

constexpr std::size_t kMost = std::size_t{1} << 20;
constexpr std::size_t kPlenty = std::size_t{1} << 30;

std::string packed(const std::string& content, bool is_gzip) {
  z_stream state{};
  REQUIRE(deflateInit2(&state, Z_BEST_COMPRESSION, Z_DEFLATED, 15 + (is_gzip ? 16 : 0), 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string result(deflateBound(&state, content.size()), '\0');
  state.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(content.data()));
  state.avail_in = static_cast<uInt>(content.size());
  state.next_out = reinterpret_cast<Bytef*>(result.data());
  state.avail_out = static_cast<uInt>(result.size());
  REQUIRE(deflate(&state, Z_FINISH) == Z_STREAM_END);
  result.resize(result.size() - state.avail_out);
  deflateEnd(&state);
  return result;
}

// In pieces of so many bytes.
std::vector<grpc::Slice> cut(const std::string& content, std::size_t size) {
  std::vector<grpc::Slice> pieces;
  for (std::size_t at = 0; at < content.size(); at += size) {
    pieces.emplace_back(content.data() + at, std::min(size, content.size() - at));
  }
  return pieces;
}

std::string random_text(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::string text(size, '\0');
  for (char& each : text) each = static_cast<char>(random() % 7);
  return text;
}

std::string text_of(const grpc::ByteBuffer& message) { return plane::text_of(bytes_of(message)); }

}  // namespace

TEST_CASE("a message is what it was, however large and wherever it is cut") {
  const Inflation inflation(kMost, kPlenty);
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{1000}, std::size_t{16383},
                                 std::size_t{16384}, std::size_t{16385}, std::size_t{32768}, std::size_t{300000},
                                 kMost - 1, kMost}) {
    const std::string text = random_text(size, static_cast<unsigned>(size));
    for (const bool is_gzip : {true, false}) {
      const std::string content = packed(text, is_gzip);
      for (const std::size_t piece : {std::size_t{1000000}, std::size_t{777}, std::size_t{1}}) {
        if (piece == 1 && size > 40000) continue;
        grpc::ByteBuffer message;
        REQUIRE(inflation.inflate(cut(content, piece), is_gzip, message) == Inflated::kReadable);
        CHECK(text_of(message) == text);
      }
    }
  }
  CHECK(inflation.bytes() == 0);
}

TEST_CASE("one byte too much is too large, and a bomb is given up as soon as it shows") {
  const Inflation inflation(kMost, kPlenty);
  const std::string bomb(100 * kMost, 'x');
  grpc::ByteBuffer message;
  CHECK(inflation.inflate(cut(packed(random_text(kMost + 1, 1), true), 4096), true, message) == Inflated::kTooLarge);
  CHECK(inflation.inflate(cut(packed(bomb, true), 4096), true, message) == Inflated::kTooLarge);
  CHECK(inflation.inflate(cut(packed(bomb, false), 4096), false, message) == Inflated::kTooLarge);
  CHECK(inflation.bytes() == 0);
}

TEST_CASE("what is inflated counts until it is let go of, whoever holds it") {
  const Inflation inflation(kMost, 3 * kMost);
  const std::vector<grpc::Slice> pieces = cut(packed(std::string(kMost - 1, 'x'), true), 4096);
  std::vector<grpc::ByteBuffer> held(2);
  for (grpc::ByteBuffer& message : held) REQUIRE(inflation.inflate(pieces, true, message) == Inflated::kReadable);
  CHECK(inflation.bytes() >= 2 * (kMost - 1));

  grpc::ByteBuffer third;
  grpc::ByteBuffer fourth;
  REQUIRE(inflation.inflate(pieces, true, third) == Inflated::kReadable);
  CHECK(inflation.inflate(pieces, true, fourth) == Inflated::kNoRoom);

  const plane::Bytes bytes = bytes_of(third);  // a view keeps it as well
  third.Clear();
  CHECK(inflation.inflate(pieces, true, fourth) == Inflated::kNoRoom);
  held.clear();
  CHECK(inflation.inflate(pieces, true, fourth) == Inflated::kReadable);
  fourth.Clear();
  CHECK(inflation.bytes() >= kMost - 1);
  CHECK(bytes.size() == kMost - 1);
}

TEST_CASE("what is not what it is called is malformed") {
  const Inflation inflation(kMost, kPlenty);
  const std::string content = packed("some text", true);
  grpc::ByteBuffer message;
  const auto outcome = [&](const std::string& bytes, bool is_gzip) {
    return inflation.inflate(cut(bytes, 5), is_gzip, message);
  };
  CHECK(outcome(content, false) == Inflated::kMalformed);
  CHECK(outcome(content.substr(0, content.size() - 1), true) == Inflated::kMalformed);
  CHECK(outcome(content + "x", true) == Inflated::kMalformed);
  CHECK(outcome(content + content, true) == Inflated::kMalformed);
  CHECK(outcome("", true) == Inflated::kMalformed);
}

TEST_CASE("noise ends somehow, and leaves nothing") {
  const Inflation inflation(kMost, kPlenty);
  std::mt19937 random(7);
  for (int round = 0; round < 3000; ++round) {
    const bool is_gzip = round % 2 == 0;
    std::string content = packed(random_text(random() % 3000, static_cast<unsigned>(round)), is_gzip);
    for (unsigned changes = 1 + static_cast<unsigned>(random() % 4); changes > 0; --changes) {
      char& changed = content[random() % content.size()];
      changed = static_cast<char>(changed ^ (1 << random() % 8));
    }
    grpc::ByteBuffer message;
    if (inflation.inflate(cut(content, 1 + random() % 64), is_gzip, message) == Inflated::kReadable) {
      CHECK(message.Length() <= kMost);
    }
  }
  CHECK(inflation.bytes() == 0);
}

}  // namespace headrace::door
