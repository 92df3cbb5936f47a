// ONNX files for tests, written by hand: field numbers are those of onnx.proto.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace headrace::programs {

class Message {
 public:
  Message& number(int field, std::uint64_t value) {
    varint(static_cast<std::uint64_t>(field) << 3);
    varint(value);
    return *this;
  }
  Message& text(int field, const std::string& value) {
    varint(static_cast<std::uint64_t>(field) << 3 | 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  Message& message(int field, const Message& value) { return text(field, value.bytes_); }
  const std::string& bytes() const { return bytes_; }

 private:
  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }
  std::string bytes_;
};

constexpr int kFloat = 1, kInt64 = 7;

// A length of -1 is any.
inline Message value_info(const std::string& name, int element, const std::vector<std::int64_t>& shape) {
  Message lengths;
  for (const std::int64_t length : shape) {
    lengths.message(1, length < 0 ? Message().text(2, "rows") : Message().number(1, static_cast<std::uint64_t>(length)));
  }
  const Message tensor = Message().number(1, static_cast<std::uint64_t>(element)).message(2, lengths);
  return Message().text(1, name).message(2, Message().message(1, tensor));
}

inline Message node(const std::string& operation, std::initializer_list<std::string> inputs, const std::string& output) {
  Message made;
  for (const std::string& input : inputs) made.text(1, input);
  return made.text(2, output).text(4, operation);
}

// A file that is gone when this goes.
class OnnxFile {
 public:
  // `values` of a table of FP32 named "table", with two columns.
  OnnxFile(const std::vector<Message>& nodes, const std::vector<Message>& inputs, const std::vector<Message>& outputs,
           const std::vector<float>& table = {}) {
    Message graph;
    for (const Message& each : nodes) graph.message(1, each);
    graph.text(2, "graph");
    if (!table.empty()) {
      const std::string raw(reinterpret_cast<const char*>(table.data()), table.size() * sizeof(float));
      graph.message(5, Message().number(1, table.size() / 2).number(1, 2).number(2, kFloat).text(8, "table").text(9, raw));
    }
    for (const Message& each : inputs) graph.message(11, each);
    for (const Message& each : outputs) graph.message(12, each);
    const Message opset = Message().text(1, "").number(2, 17);
    std::string name = "/tmp/headrace-test-XXXXXX";
    const int descriptor = mkstemp(name.data());
    path = name;
    if (descriptor >= 0) ::close(descriptor);
    std::ofstream(path, std::ios::binary) << Message().number(1, 8).message(7, graph).message(8, opset).bytes();
  }
  OnnxFile(const OnnxFile&) = delete;
  OnnxFile& operator=(const OnnxFile&) = delete;
  ~OnnxFile() { std::remove(path.c_str()); }

  std::string path;
};

// y = x + x, for any number of rows of two.
inline OnnxFile doubled() {
  return {{node("Add", {"x", "x"}, "y")}, {value_info("x", kFloat, {-1, 2})}, {value_info("y", kFloat, {-1, 2})}};
}

}  // namespace headrace::programs
