// Whether a request fits a signature: here, texts in place of numbers.
#include "plane/match.h"

#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "messages.h"
#include "plane/wire/predict.h"

namespace headrace::plane::testing {
namespace {

class Unasked final : public batching::Call {
 public:
  void take(const batching::Share&) noexcept override {}
  void answered(const batching::Timing&) noexcept override {}
  void refused(const batching::Refusal&) noexcept override {}
};

// A model with one input of such numbers, which may stand for these texts.
struct Asked {
  Version version;
  Bytes bytes;
  Question question;
  Unasked call;
  bool fits = false;

  Asked(Element element, const std::vector<std::string>& categories, const std::vector<std::string>& texts,
        std::int64_t length = -1) {
    version.inputs = {{"x", element, {length}, false, std::make_shared<const Categories>(categories)}};
    version.takes_rows = true;
    std::string values;
    for (const std::string& text : texts) values += field(1, text);
    const std::string tensor = number_field(1, 16) + field(2, varint(texts.size())) + field(6, values);
    bytes = message(field(1, "models/m") + field(2, field(1, "x") + field(2, tensor)), 3);  // texts lie in pieces
    REQUIRE(wire::read_predict(wire::Reader(bytes.pieces), question));
    fits = match(question, version, call);
  }

  template <class Number>
  std::vector<Number> numbers() const {
    REQUIRE(call.inputs.size() == 1);
    REQUIRE(call.inputs[0].pieces.size() == 1);
    const Piece& piece = call.inputs[0].pieces[0];
    CHECK(call.nbytes == piece.size);
    std::vector<Number> found(piece.size / sizeof(Number));
    std::memcpy(found.data(), piece.data, piece.size);
    return found;
  }
};

}  // namespace

TEST_CASE("texts become the numbers that stand for them, in the type of the input") {
  const std::string longest = "a text longer than others";
  const Asked wide(Element::kInt64, {"red", "green", longest}, {"green", longest});
  REQUIRE(wide.fits);
  CHECK(wide.numbers<std::int64_t>() == std::vector<std::int64_t>{1, 2});
  const Asked narrow(Element::kUint8, {"red", "green"}, {"red", "green"});
  REQUIRE(narrow.fits);
  CHECK(narrow.numbers<std::uint8_t>() == std::vector<std::uint8_t>{0, 1});
}

TEST_CASE("an empty text in the first place stands for what is not listed, and none elsewhere does") {
  const Asked lenient(Element::kInt32, {"", "red", ""}, {"mauve", "", "red"});
  REQUIRE(lenient.fits);
  CHECK(lenient.numbers<std::int32_t>() == std::vector<std::int32_t>{0, 0, 1});
  CHECK_FALSE(Asked(Element::kInt32, {"red", ""}, {"mauve"}).fits);
  CHECK_FALSE(Asked(Element::kInt32, {"red", ""}, {""}).fits);
}

TEST_CASE("of two texts that are alike the last one counts") {
  const Asked asked(Element::kInt16, {"red", "green", "red"}, {"red"});
  REQUIRE(asked.fits);
  CHECK(asked.numbers<std::int16_t>() == std::vector<std::int16_t>{2});
}

TEST_CASE("a number that its type cannot hold, and a shape that does not fit, are left to the complete server") {
  std::vector<std::string> many(200);
  for (std::size_t i = 0; i < many.size(); ++i) many[i] = "text " + std::to_string(i);
  CHECK(Asked(Element::kInt8, many, {"text 127"}).fits);
  CHECK_FALSE(Asked(Element::kInt8, many, {"text 128"}).fits);
  CHECK_FALSE(Asked(Element::kInt8, many, {"text 1", "text 2"}, 3).fits);
}

}  // namespace headrace::plane::testing
