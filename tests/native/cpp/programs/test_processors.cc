// Who is company to whom.
#include <doctest/doctest.h>

#include <memory>

#include "programs/processors.h"

namespace headrace::programs {
namespace {

struct Machine {
  double now = 100;
  std::shared_ptr<Processors> processors = std::make_shared<Processors>(0.25, [this] { return now; });
  Processors::Runs one{processors}, other{processors};

  // A run that takes so long.
  Company run(Processors::Runs& runs, double seconds) {
    const Company company = runs.begin();
    now += seconds;
    runs.end();
    return company;
  }
};

TEST_CASE("models that run in turn are no company to each other, however busy they are") {
  Machine machine;

  for (int i = 0; i < 10; ++i) {
    CHECK(machine.run(machine.one, 0.01) == Company::kNone);
    CHECK(machine.run(machine.other, 0.01) == Company::kNone);
  }
}

TEST_CASE("models that have met are taken to meet again for a while, also between their runs") {
  Machine machine;

  CHECK(machine.one.begin() == Company::kNone);
  CHECK(machine.run(machine.other, 0.01) == Company::kOthers);
  machine.one.end();
  CHECK(machine.run(machine.one, 0.01) == Company::kOthers);
  machine.now += 0.2;
  CHECK(machine.run(machine.other, 0.01) == Company::kOthers);
  machine.now += 0.1;

  CHECK(machine.run(machine.one, 0.01) == Company::kNone);
}

TEST_CASE("each meeting begins the while anew, and runs of one model do not meet") {
  Machine machine;

  for (int i = 0; i < 5; ++i) {
    machine.one.begin();
    machine.now += 0.1;
    CHECK(machine.run(machine.other, 0.1) == Company::kOthers);
    machine.one.end();
  }
  machine.now += 1;
  CHECK(machine.one.begin() == Company::kNone);
  CHECK(machine.run(machine.one, 0.01) == Company::kOwn);
  machine.one.end();
  CHECK(machine.run(machine.one, 0.01) == Company::kNone);
}

}  // namespace
}  // namespace headrace::programs
