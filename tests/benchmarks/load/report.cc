#include "report.h"

#include <cstdio>
#include <sstream>

namespace load {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      out += escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}

// Writes one object; commas and quotes are its business.
class Object {
 public:
  explicit Object(std::ostringstream& out) : out_(out) { out_ << '{'; }
  ~Object() { out_ << '}'; }
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  std::ostringstream& name(const std::string& name) {
    out_ << (first_ ? "" : ", ") << quoted(name) << ": ";
    first_ = false;
    return out_;
  }

 private:
  std::ostringstream& out_;
  bool first_ = true;
};

void write_latency(std::ostringstream& out, const Histogram& histogram) {
  Object object(out);
  object.name("mean") << histogram.mean() / 1e6;
  object.name("p50") << histogram.quantile(0.5) / 1e6;
  object.name("p90") << histogram.quantile(0.9) / 1e6;
  object.name("p99") << histogram.quantile(0.99) / 1e6;
  object.name("p99_9") << histogram.quantile(0.999) / 1e6;
  object.name("max") << static_cast<double>(histogram.most()) / 1e6;
}

template <class Map>
void write_counts(std::ostringstream& out, const Map& map) {
  Object object(out);
  for (const auto& [name, count] : map) object.name(name) << count;
}

}  // namespace

std::string report(const Options& options, const Outcome& outcome) {
  std::ostringstream out;
  out.precision(9);
  Tally all;
  all.add(outcome.measured);
  all.add(outcome.outside);
  const auto& measured = outcome.measured;
  {
    Object object(out);
    object.name("mode") << (options.rate > 0 ? "\"open\"" : "\"closed\"");
    object.name("seconds") << outcome.seconds;
    object.name("answers") << measured.answers.count();
    object.name("answers_per_second") << static_cast<double>(measured.answers.count()) / outcome.seconds;
    object.name("latency_ms");
    write_latency(out, measured.answers);
    object.name("errors");
    write_counts(out, measured.reasons);
    object.name("error_latency_ms");
    write_latency(out, measured.errors);
    object.name("answer_bytes") << '[' << (measured.answers.count() ? measured.least_bytes : 0) << ", "
                                << measured.most_bytes << ']';
    if (options.rate > 0) {
      object.name("due") << outcome.due;
      object.name("unsent") << outcome.unsent;
      object.name("good") << measured.good;
      object.name("good_per_second") << static_cast<double>(measured.good) / outcome.seconds;
      object.name("late_start_ms");
      write_latency(out, outcome.late);
    }
    object.name("total");
    {
      Object total(out);
      total.name("started") << outcome.started;
      total.name("answers") << all.answers.count();
      total.name("errors");
      write_counts(out, all.reasons);
      total.name("first_messages");
      {
        Object messages(out);
        for (const auto& [reason, message] : all.first_messages) messages.name(reason) << quoted(message);
      }
    }
    const auto ended = static_cast<double>(measured.ended());
    object.name("own");
    {
      Object own(out);
      own.name("cores") << outcome.own_seconds / outcome.seconds;
      own.name("us_per_call") << (ended > 0 ? outcome.own_seconds / ended * 1e6 : 0);
    }
  }
  return out.str();
}

}  // namespace load
