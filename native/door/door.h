// The door: it owns the public port, answers the data plane itself, and passes everything else through.
#pragma once

#include <cstdint>
#include <memory>

#include "door/options.h"
#include "plane/plane.h"

namespace headrace::door {

class Door {
 public:
  // `plane` may be missing: then every call is passed through.
  Door(Options options, std::shared_ptr<plane::Plane> plane);
  // Cuts off whatever is still under way.
  ~Door();
  Door(const Door&) = delete;
  Door& operator=(const Door&) = delete;

  // Take the port and begin to accept; false when the port cannot be had.  Calls wait until `open`.
  bool bind();
  int port() const;
  // The complete server is there.
  void open();
  // Take no calls any more, tell callers to go elsewhere, and wait for what is under way, at most `grace_seconds`; what
  // is then left is cancelled.  Returns when nothing is left.  Blocks.
  void close(double grace_seconds);
  // Cancel what a `close` on another thread waits for.
  void hurry();
  std::int64_t calls_in_flight() const;

 private:
  class Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace headrace::door
