// Programs of ONNX, with the library that HEADRACE_ONNXRUNTIME names.
#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <thread>

#include "programs/onnx_file.h"
#include "programs/onnxruntime.h"

namespace headrace::programs {
namespace {

const OnnxRuntime& runtime() {
  const char* const path = std::getenv("HEADRACE_ONNXRUNTIME");
  REQUIRE_MESSAGE(path != nullptr, "set HEADRACE_ONNXRUNTIME to the path of libonnxruntime.so");
  return OnnxRuntime::load(path);
}

template <class T>
batching::Feed feed(Element element, std::vector<T>& values, std::vector<std::int64_t> shape) {
  batching::Feed made;
  made.element = element;
  made.shape = std::move(shape);
  made.data = reinterpret_cast<std::byte*>(values.data());
  return made;
}

std::vector<float> floats(const batching::Output& output) {
  std::vector<float> values(output.size_bytes / sizeof(float));
  std::memcpy(values.data(), output.data, output.size_bytes);
  return values;
}

}  // namespace

TEST_CASE("a library that is none is refused with a sentence, and another may be tried") {
  CHECK_THROWS_AS(OnnxRuntime::load("/nowhere/libonnxruntime.so"), std::runtime_error);
  CHECK_THROWS_WITH_AS(OnnxRuntime::load("libm.so.6"), "libm.so.6 is no ONNX Runtime", std::runtime_error);
  CHECK(runtime().version().find('.') != std::string::npos);
}

TEST_CASE("a program computes any number of rows, and says the shape of what it gives") {
  const OnnxFile file = doubled();
  const OnnxProgram program(runtime(), file.path, 1, true, {"x"}, {"y"});
  for (const std::int64_t rows : {1, 3, 1, 64}) {
    std::vector<float> x(static_cast<std::size_t>(rows) * 2);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i) + 0.5f;
    std::vector<batching::Output> outputs;

    program.run({feed(Element::kFp32, x, {rows, 2})}, outputs);

    REQUIRE(outputs.size() == 1);
    CHECK(outputs[0].element == Element::kFp32);
    CHECK(outputs[0].shape == std::vector<std::int64_t>{rows, 2});
    CHECK(outputs[0].row_bytes == 8);
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(floats(outputs[0])[i] == 2 * x[i]);
  }
}

TEST_CASE("what a run gives stays as it is, whatever runs after it, and outlives the program") {
  const OnnxFile file = doubled();
  std::vector<batching::Output> first, second;
  {
    const OnnxProgram program(runtime(), file.path, 1, true, {"x"}, {"y"});
    std::vector<float> x{1, 2}, other{3, 4};
    program.run({feed(Element::kFp32, x, {1, 2})}, first);
    program.run({feed(Element::kFp32, other, {1, 2})}, second);
  }

  CHECK(floats(first[0]) == std::vector<float>{2, 4});
  CHECK(floats(second[0]) == std::vector<float>{6, 8});
}

TEST_CASE("an output that is an input does not lie in the memory of the caller") {
  const OnnxFile file({node("Identity", {"x"}, "y")}, {value_info("x", kFloat, {-1, 2})},
                      {value_info("y", kFloat, {-1, 2})});
  const OnnxProgram program(runtime(), file.path, 1, true, {"x"}, {"y"});
  std::vector<float> x{1, 2};
  std::vector<batching::Output> outputs;

  program.run({feed(Element::kFp32, x, {1, 2})}, outputs);
  x = {8, 9};

  CHECK(floats(outputs[0]) == std::vector<float>{1, 2});
}

TEST_CASE("inputs and outputs go in the order of the names, not in that of the file") {
  const OnnxFile file({node("Sub", {"a", "b"}, "d"), node("Add", {"a", "b"}, "s")},
                      {value_info("a", kFloat, {-1}), value_info("b", kFloat, {-1})},
                      {value_info("d", kFloat, {-1}), value_info("s", kFloat, {-1})});
  const OnnxProgram program(runtime(), file.path, 1, true, {"b", "a"}, {"s", "d"});
  std::vector<float> b{1}, a{5};
  std::vector<batching::Output> outputs;

  program.run({feed(Element::kFp32, b, {1}), feed(Element::kFp32, a, {1})}, outputs);

  REQUIRE(outputs.size() == 2);
  CHECK(floats(outputs[0]) == std::vector<float>{6});
  CHECK(floats(outputs[1]) == std::vector<float>{4});
}

TEST_CASE("what the runtime says of a failure keeps its number and its words, and the next run is none the worse") {
  const OnnxFile file({node("Gather", {"table", "i"}, "y")}, {value_info("i", kInt64, {-1})},
                      {value_info("y", kFloat, {-1, 2})}, {1, 2, 3, 4});
  const OnnxProgram program(runtime(), file.path, 1, true, {"i"}, {"y"});
  std::vector<std::int64_t> outside{7}, inside{1};
  std::vector<float> wrong{1};
  std::vector<batching::Output> outputs;

  const auto run = [&](auto& values, Element element) { program.run({feed(element, values, {1})}, outputs); };
  try {
    run(outside, Element::kInt64);
    FAIL("it ran");
  } catch (const OnnxRuntimeError& error) {
    CHECK(error.code() == 2);
    CHECK(std::string(error.what()).find("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : ") == 0);
    CHECK(std::string(error.what()).find("idx=7") != std::string::npos);
  }
  CHECK_THROWS_AS(run(wrong, Element::kFp32), OnnxRuntimeError);
  run(inside, Element::kInt64);

  CHECK(floats(outputs[0]) == std::vector<float>{3, 4});
}

TEST_CASE("a file that is no program is refused, and so is one that is not there") {
  const OnnxFile empty({}, {}, {});
  CHECK_THROWS_AS(OnnxProgram(runtime(), empty.path + ".gone", 1, true, {}, {}), OnnxRuntimeError);
  std::ofstream(empty.path, std::ios::trunc) << "no protobuf";
  CHECK_THROWS_AS(OnnxProgram(runtime(), empty.path, 1, false, {}, {}), OnnxRuntimeError);
}

TEST_CASE("lanes may run one program at once") {
  const OnnxFile file = doubled();
  const OnnxProgram program(runtime(), file.path, 1, true, {"x"}, {"y"});
  std::vector<std::thread> lanes;
  std::vector<int> num_right(4);
  for (std::size_t lane = 0; lane < num_right.size(); ++lane) {
    lanes.emplace_back([&, lane] {
      for (int i = 0; i < 200; ++i) {
        std::vector<float> x{static_cast<float>(lane), static_cast<float>(i)};
        std::vector<batching::Output> outputs;
        program.run({feed(Element::kFp32, x, {1, 2})}, outputs);
        num_right[lane] += floats(outputs[0]) == std::vector<float>{2 * x[0], 2 * x[1]};
      }
    });
  }
  for (std::thread& lane : lanes) lane.join();

  CHECK(num_right == std::vector<int>{200, 200, 200, 200});
}

}  // namespace headrace::programs
